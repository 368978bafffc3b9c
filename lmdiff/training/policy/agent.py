"""From a policy agent's config to a trained pipeline: recording, batches, loop, `RUN_DIR/agent`."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import nn

from lmdiff.config import to_dict
from lmdiff.data.chunks import ChunkBatch, ChunkSampler
from lmdiff.data.demonstrations import load_or_record
from lmdiff.data.normalizer import Normalizer
from lmdiff.data.recordings import Recording
from lmdiff.evaluation.policy_language import draw_told, run_told
from lmdiff.evaluation.policy_rollout import Sampling
from lmdiff.goals.descriptions import Split
from lmdiff.goals.encoder import GoalEncoder
from lmdiff.goals.grammar import load_unknown
from lmdiff.goals.refusal import KnownGoals
from lmdiff.goals.sayings import Sayings, load_sayings
from lmdiff.pipelines.model_card import write_policy_card
from lmdiff.pipelines.policy_pipeline import PolicyPipeline
from lmdiff.policy_config import PolicyAgentConfig
from lmdiff.tasks.world import World
from lmdiff.tasks.worlds import make_world
from lmdiff.training.callbacks import Event
from lmdiff.training.launch import make_accelerator
from lmdiff.training.loop import train
from lmdiff.training.manifest import check_same_agent
from lmdiff.training.policy.experience import Experience
from lmdiff.training.policy.init import start_from, trained_weights
from lmdiff.training.policy.module import PolicyModule
from lmdiff.training.policy.online import OnlineBatch, OnlineModule
from lmdiff.training.ranks import shard_of

_NORMALIZER_ROWS = 50_000
_REFUSAL_PHRASES = 1500
# Few sentences are taught: those of validation are nearer to them than new ones will be, and the
# threshold of highest balanced accuracy between them and strays refuses most of what is new.
_REFUSED = 0.9
_VALIDATION_EPISODES = 50


def train_policy_agent(
    config: PolicyAgentConfig,
    run_dir: Path,
    *,
    init: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a policy and save its pipeline in `run_dir/agent`; returns the last metrics.

    Args:
        config: the agent.
        run_dir: of the run.
        init: folder of a saved policy whose weights are the start. A resumed run knows it.
        resume: go on from the newest whole checkpoint.
        quiet: no progress bar.

    Raises:
        UserError: a config, run directory or checkpoint that does not fit.
        KeyboardInterrupt: Ctrl-C, after a checkpoint.
    """
    if resume:
        started_from = check_same_agent(run_dir, to_dict(config)).get("init")
        init = None if started_from is None else Path(started_from)
    accelerator, training = make_accelerator(), config.training
    with accelerator.main_process_first():
        recording = load_or_record(config.world, quiet=quiet or not accelerator.is_main_process)
    world = make_world(config.world.name)
    sayings = load_sayings(world.family)
    sampler = make_sampler(config, recording, world, sayings)
    # Every rank initialises alike; their batches differ.
    set_seed(training.seed)
    normalizer = fit_normalizer(recording, training.seed)
    online = config.online.episodes_per_round > 0
    make = OnlineModule if online else PolicyModule
    module = make(config, normalizer, world.action_size, world.cells)
    if init is not None and not resume:
        start_from(module, trained_weights(init), init)
    module.to(accelerator.device)
    if config.goal.adaptation == "frozen":
        # All at once, so that a resumed run sees the same last digits (see training/agent.py).
        module.goal_encoder(sorted({text for texts in sampler.phrases for text in texts}))

    def recorded(number: int) -> ChunkBatch:
        return sampler.batch(training.seed, shard_of(accelerator, number), training.batch_size)

    def samples(lived: Recording) -> ChunkSampler:
        return make_sampler(config, lived, world, sayings)

    batches: Callable[[int], ChunkBatch | OnlineBatch] = recorded
    if isinstance(module, OnlineModule):
        batches = Experience(
            config, module, world, sayings, sampler, samples, run_dir, accelerator
        ).batch

    def watch(event: Event, step: int, figures: dict[str, Any]) -> None:
        if event == "step":
            module.algorithm.after_step()
        if event == "log" and isinstance(module, OnlineModule):
            figures["environment_steps"] = int(module.environment_steps)

    metrics = train(
        training,
        module,
        batches,
        run_dir,
        accelerator=accelerator,
        evaluate=_evaluation(config, world, sayings, module),
        watch=watch,
        round_steps=config.online.updates_per_round if online else 1,
        manifest={
            "agent": to_dict(config),
            "prompts_sha256": sayings.digest,
            "init": None if init is None else str(init.resolve()),
        },
        resume=resume,
        onednn=config.algorithm.network.kind == "mlp",
        quiet=quiet,
    )
    if accelerator.is_main_process:
        save_policy(config, world, sayings, module, run_dir / "agent", metrics)
    accelerator.wait_for_everyone()
    return metrics


def make_sampler(
    config: PolicyAgentConfig, recording: Recording, world: World, sayings: Sayings
) -> ChunkSampler:
    """Batches of a recording, with taught sentences for the world's goals."""
    holds = None
    if config.chunks.hindsight + config.chunks.random_goals > 0:
        holds = world.holds(recording.observations.astype(np.float32))
    return ChunkSampler(
        recording,
        world.goals,
        {goal: sayings.of(goal, "train") for goal in world.goals},
        config.chunks,
        config.algorithm.critic.discount,
        holds,
    )


def fit_normalizer(recording: Recording, seed: int) -> Normalizer:
    """Of observations, from some of the recorded ones; codes of zeros and ones stay as they are."""
    size = recording.observations.shape[1]
    if recording.observations.dtype == np.uint8:
        return Normalizer(mean=[0.0] * size, std=[1.0] * size)
    rows = np.random.default_rng(seed).choice(
        len(recording.observations), min(_NORMALIZER_ROWS, len(recording.observations)), False
    )
    return Normalizer.fit(torch.from_numpy(recording.observations[rows]).float())


def make_policy_pipeline(
    config: PolicyAgentConfig, module: PolicyModule, known_goals: KnownGoals | None
) -> PolicyPipeline:
    """The pipeline of a module's present weights."""
    algorithm = module.algorithm
    return PolicyPipeline(
        network=algorithm.actor.network,
        normalizer=module.normalizer,
        goal_encoder=module.goal_encoder,
        scheduler=algorithm.actor.scheduler(),
        # Where there is no choice, no critic is asked.
        critic=algorithm.critic if algorithm.candidates > 1 else None,
        known_goals=known_goals,
        history=config.chunks.history,
        execute=config.chunks.execute,
        candidates=algorithm.candidates,
        world=config.world.name,
        agent=config.name,
        evaluation=to_dict(config.evaluation),
    )


def fit_known_goals(encoder: GoalEncoder, world: World, sayings: Sayings) -> KnownGoals:
    """What was taught, and the threshold below which goals are refused (validation sentences)."""
    taught = sayings.phrases(world.goals, "train", _REFUSAL_PHRASES)
    validation = sayings.phrases(world.goals, "validation", _REFUSAL_PHRASES // 3)
    return KnownGoals.fit(
        encoder,
        [saying.text for saying in taught],
        unknown_sentences(world, sayings, "train"),
        [saying.text for saying in validation],
        unknown_sentences(world, sayings, "validation"),
        labels=[saying.goal for saying in taught],
        refused=_REFUSED,
    )


def unknown_sentences(world: World, sayings: Sayings, split: Split) -> list[str]:
    """Sentences that ask for nothing in this world."""
    return [text for text in load_unknown(split) if not sayings.may_mean(text)]


def save_policy(
    config: PolicyAgentConfig,
    world: World,
    sayings: Sayings,
    module: PolicyModule,
    folder: Path,
    metrics: dict[str, Any],
) -> None:
    """Save the pipeline with its card; a half-written folder never takes the place of a whole."""
    known = None
    if len(world.goals) > 1:
        known = fit_known_goals(module.goal_encoder, world, sayings)
    written = folder.with_name(f".{folder.name}-writing")
    shutil.rmtree(written, ignore_errors=True)
    make_policy_pipeline(config, module, known).save_pretrained(written)
    write_policy_card(written, config, world.family, sayings.digest, metrics)
    shutil.rmtree(folder, ignore_errors=True)
    written.rename(folder)


def _evaluation(
    config: PolicyAgentConfig, world: World, sayings: Sayings, module: PolicyModule
) -> Callable[[nn.Module, int], dict[str, float]] | None:
    """Success by validation sentences, for a look during training; none if never asked for."""
    if config.training.evaluate_every <= 0:
        return None
    seed = config.training.seed
    told = draw_told(world, sayings, "validation", _VALIDATION_EPISODES, seed)
    own = config.evaluation
    sampling = Sampling(own.num_inference_steps, own.guidance_scale)

    def evaluate(_: nn.Module, step: int) -> dict[str, float]:
        pipe = make_policy_pipeline(config, module, known_goals=None)
        outcomes = run_told(pipe, told, sampling, step)
        return {"success": sum(o.success for o in outcomes) / len(outcomes)}

    return evaluate
