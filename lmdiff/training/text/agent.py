"""From a text agent's config to a trained pipeline: rows, model, loop, `RUN_DIR/agent`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from lmdiff.config import to_dict
from lmdiff.denoisers.masked_text import TextBatch
from lmdiff.denoisers.text_loading import prefer_plain_attention
from lmdiff.errors import UserError
from lmdiff.evaluation.text import solving
from lmdiff.pipelines.text_agents import (
    TextModel,
    make_text_model,
    make_text_pipeline,
    save_text_agent,
)
from lmdiff.text.config import TextAgentConfig
from lmdiff.text.tasks import TextTask, make_task
from lmdiff.training.callbacks import Event, Watch
from lmdiff.training.guards import check_sharding
from lmdiff.training.launch import make_accelerator
from lmdiff.training.loop import train
from lmdiff.training.manifest import check_same_agent
from lmdiff.training.ranks import shard_of
from lmdiff.training.sharding import trained_weights
from lmdiff.training.text.rl_agent import train_rl
from lmdiff.training.text.sft import Examples, SFTModule

_VALIDATION_ROWS = 100


def train_text_agent(
    config: TextAgentConfig,
    run_dir: Path,
    *,
    init: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a text agent and save its pipeline in `run_dir/agent`; returns the last metrics.

    Args:
        config: the agent.
        run_dir: of the run.
        init: folder of a saved agent whose weights are the start. A resumed run knows it.
        resume: go on from the newest whole checkpoint.
        quiet: no progress bar.

    Raises:
        UserError: a config, run directory or checkpoint that does not fit.
        KeyboardInterrupt: Ctrl-C, after a checkpoint.
    """
    if resume:
        started_from = check_same_agent(run_dir, to_dict(config))["init"]
        init = None if started_from is None else Path(started_from)
    task = make_task(config.task)
    # Every rank initialises alike; their batches differ.
    set_seed(config.training.seed)
    parts = make_text_model(config.model, task.alphabet, init)
    if config.algorithm == "rl":
        # Its trainer has no such setting, and would leave it out in silence.
        check_sharding(config.training, parts.model, evaluates=False)
        return train_rl(
            config,
            task,
            parts,
            run_dir,
            manifest=manifest_of(config, init),
            evaluate=validation(config, task, parts),
            resume=resume,
            quiet=quiet,
        )
    return train_sft(config, task, parts, run_dir, init=init, resume=resume, quiet=quiet)


def train_sft(
    config: TextAgentConfig,
    task: TextTask,
    parts: TextModel,
    run_dir: Path,
    *,
    init: Path | None,
    resume: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Fine-tune on a task's completions, or pre-train on its whole texts."""
    accelerator, training = make_accelerator(), config.training
    bf16 = training.mixed_precision == "bf16"
    prefer_plain_attention(parts.model, parts.spec, accelerator.device, bf16)
    rows = task.rows("train", config.task.examples, config.task.data_seed)
    most = getattr(parts.model.config, "max_position_embeddings", None)
    examples = Examples(
        parts, rows, config.sampling.generation_length, most, config.algorithm == "pretrain"
    )

    def batches(number: int) -> TextBatch:
        shard = shard_of(accelerator, number)
        return examples.batch(training.seed, shard, training.batch_size)

    module = SFTModule(parts, config.sft)
    metrics = train(
        training,
        module,
        batches,
        run_dir,
        accelerator=accelerator,
        evaluate=validation(config, task, parts),
        watch=stopping_at(config),
        manifest=manifest_of(config, init),
        resume=resume,
        onednn=True,
        quiet=quiet,
    )
    trained = trained_weights(module) if training.shard else {}
    if accelerator.is_main_process:
        if training.shard:  # what was sharded stays so: a whole model takes its weights
            set_seed(training.seed)
            parts = make_text_model(config.model, task.alphabet, init)
            SFTModule(parts, config.sft).load_state_dict(trained, strict=False)
        save_text_agent(config, parts, run_dir / "agent", metrics)
    accelerator.wait_for_everyone()
    return metrics


def manifest_of(config: TextAgentConfig, init: Path | None) -> dict[str, Any]:
    """What run.json tells of a text agent, and a resume reads."""
    return {"agent": to_dict(config), "init": None if init is None else str(init.resolve())}


def stopping_at(config: TextAgentConfig) -> Watch | None:
    """For the loop's `watch`: end one step after `sft.stop_at` of the validation is solved.

    Raises:
        UserError: it is never looked at.
    """
    share = config.sft.stop_at
    if share <= 0:
        return None
    if config.training.evaluate_every < 1:
        raise UserError(
            f"sft.stop_at = {share:g} needs an evaluation now and then: set "
            "--training.evaluate-every 10."
        )
    best = 0.0

    def watch(event: Event, step: int, figures: dict[str, Any]) -> bool:
        nonlocal best
        if event == "log":
            best = max(best, figures.get("eval/solved", 0.0))
        return event == "step" and best >= share

    return watch


def validation(
    config: TextAgentConfig, task: TextTask, parts: TextModel
) -> Callable[[Any, int], dict[str, float]] | None:
    """The share of validation prompts that is solved, for a look during training."""
    if config.training.evaluate_every <= 0 or not task.solved:
        return None
    rows = task.rows("validation", _VALIDATION_ROWS, config.task.data_seed)
    size = config.evaluation.batch_size
    return solving(lambda: make_text_pipeline(config, parts), rows, task.solved, size)
