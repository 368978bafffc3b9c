"""From an agent's config to a trained pipeline: data, windows, module, loop, `RUN_DIR/agent`."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

from lmdiff.config import AgentConfig, to_dict
from lmdiff.data.episodes import load_or_generate
from lmdiff.data.goal_states import GoalStateSampler
from lmdiff.data.hindsight import HindsightPhrases
from lmdiff.data.normalizer import Normalizer
from lmdiff.data.routes import Hops
from lmdiff.data.windows import WindowSampler
from lmdiff.denoisers.recorded_hops import RecordedHops
from lmdiff.evaluation.language import draw_trials, run_trials
from lmdiff.evaluation.rollout import Settings
from lmdiff.goals.encoder import GoalEncoder
from lmdiff.goals.grammar import load_grammar, load_unknown
from lmdiff.goals.refusal import KnownGoals
from lmdiff.pipelines.goal_pipeline import GoalPipeline
from lmdiff.pipelines.model_card import write_card
from lmdiff.tasks.pointmaze import PointMaze
from lmdiff.training.imitation import ImitationBatch, ImitationModule
from lmdiff.training.launch import make_accelerator
from lmdiff.training.loop import train
from lmdiff.training.manifest import check_same_agent
from lmdiff.training.ranks import shard_of

_NORMALIZER_WINDOWS = 4096
_NO_RANK = 2**31  # the windows that fit the normaliser are no process's batch
_REFUSAL_PHRASES = 3000


def train_agent(
    config: AgentConfig, run_dir: Path, *, resume: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Train an agent and save its pipeline in `run_dir/agent`; returns the last metrics.

    Raises:
        UserError: a config, run directory or checkpoint that does not fit.
        KeyboardInterrupt: Ctrl-C, after a checkpoint.
    """
    if resume:
        check_same_agent(run_dir, to_dict(config))
    accelerator = make_accelerator()
    with accelerator.main_process_first():
        episodes = load_or_generate(config.task, quiet=quiet or not accelerator.is_main_process)
    task, grammar = PointMaze(config.task.name), load_grammar(PointMaze.grammar)
    phrases = grammar.phrases(task.places, "train", limit=config.data.phrases)
    words = HindsightPhrases(task, phrases) if config.denoiser.words else None
    sampler = WindowSampler(config, episodes, words)
    # Every rank initialises alike; their batches differ.
    set_seed(config.training.seed)
    sample = sampler.batch(config.training.seed, _NO_RANK, 0, _NORMALIZER_WINDOWS)
    hop_length = sampler.hops.speed * config.denoiser.stride
    normalizer = Normalizer.fit(sample.window.flatten(0, 1))
    recorded = _recorded_hops(config, sampler.hops, normalizer)
    module = ImitationModule(config, normalizer, hop_length, recorded)
    goal_states = None
    if words is not None and module.goal_prior is not None:
        ends = sampler.hops.moving + 1
        goal_states = GoalStateSampler(sampler.hops.states[ends], words)
        module.remember(goal_states.known(config.prior.known_states, config.training.seed))

    module.to(accelerator.device)  # a later move would forget what is encoded here
    if words is not None and config.goal.adaptation == "frozen":
        # All at once, and so always in the same chunks: a phrase's states depend in their last
        # digits on what it is encoded with, and a resumed run must see the same ones.
        module.goal_encoder([phrase.text for phrase in phrases])

    def batches(number: int) -> ImitationBatch:
        which = config.training.seed, 0, shard_of(accelerator, number)
        windows = sampler.batch(*which, config.training.batch_size)
        if goal_states is None:
            return ImitationBatch(windows, None)
        prior = config.prior
        return ImitationBatch(windows, goal_states.batch(*which, prior.phrases, prior.states))

    metrics = train(
        config.training,
        module,
        batches,
        run_dir,
        accelerator=accelerator,
        evaluate=_evaluation(config, task, module) if config.denoiser.words else None,
        manifest={"agent": to_dict(config), "prompts_sha256": grammar.digest},
        resume=resume,
        quiet=quiet,
    )
    if accelerator.is_main_process:
        save_agent(config, module, run_dir / "agent", metrics)
    accelerator.wait_for_everyone()
    return metrics


def _recorded_hops(config: AgentConfig, hops: Hops, normalizer: Normalizer) -> RecordedHops | None:
    if config.data.recorded_hops < 1:
        return None
    states = normalizer.encode_part(torch.from_numpy(hops.states)).numpy()
    before, after = states[hops.moving], states[hops.moving + 1]
    return RecordedHops.of(before, after, config.data.recorded_hops, config.training.seed)


def _evaluation(
    config: AgentConfig, task: PointMaze, module: ImitationModule
) -> Callable[[nn.Module, int], dict[str, float]] | None:
    """Success on validation phrases, for a look during training; none if it is never asked for."""
    if config.training.evaluate_every <= 0:
        return None
    phrases = load_grammar(task.grammar).phrases(task.places, "validation", limit=50)
    trials = draw_trials(task, phrases, len(phrases), config.training.seed)
    evaluation = config.evaluation
    settings = Settings(
        evaluation.num_inference_steps, evaluation.guidance_scale, evaluation.projection_steps
    )

    def evaluate(_: nn.Module, step: int) -> dict[str, float]:
        pipe = make_pipeline(config, module, known_goals=None)
        outcomes = run_trials(pipe, task, trials, settings, step)
        return {"success": sum(o.success for o in outcomes) / len(outcomes)}

    return evaluate


def make_pipeline(
    config: AgentConfig, module: ImitationModule, known_goals: KnownGoals | None
) -> GoalPipeline:
    """The pipeline of a module's present weights."""
    return GoalPipeline(
        network=module.denoiser.network,
        normalizer=module.normalizer,
        goal_encoder=module.goal_encoder,
        goal_prior=module.goal_prior,
        recorded_hops=module.recorded_hops,
        scheduler=module.denoiser.process.scheduler(),
        known_goals=known_goals,
        stride=config.denoiser.stride,
        hop_length=module.hop_length,
        task=config.task.name,
        agent=config.name,
        evaluation=to_dict(config.evaluation),
    )


def fit_known_goals(encoder: GoalEncoder, task: PointMaze) -> KnownGoals:
    """What was taught, and the threshold below which goals are refused (validation phrases)."""
    grammar = load_grammar(task.grammar)
    taught = grammar.phrases(task.places, "train", limit=_REFUSAL_PHRASES)
    validation = grammar.phrases(task.places, "validation", limit=_REFUSAL_PHRASES // 3)
    return KnownGoals.fit(
        encoder,
        [phrase.text for phrase in taught],
        load_unknown("train"),
        [phrase.text for phrase in validation],
        load_unknown("validation"),
        labels=[str(phrase.place) for phrase in taught],
    )


def save_agent(
    config: AgentConfig, module: ImitationModule, folder: Path, metrics: dict[str, Any]
) -> None:
    """Save the pipeline with its card; a half-written folder never takes the place of a whole."""
    known = None
    if config.denoiser.words:
        known = fit_known_goals(module.goal_encoder, PointMaze(config.task.name))
    written = folder.with_name(f".{folder.name}-writing")
    shutil.rmtree(written, ignore_errors=True)
    make_pipeline(config, module, known).save_pretrained(written)
    write_card(written, config, metrics)
    shutil.rmtree(folder, ignore_errors=True)
    written.rename(folder)
