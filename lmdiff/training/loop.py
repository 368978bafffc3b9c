"""The training loop: one for imitation, offline and online RL, of plans and of text.

What is learned is the module's business: its forward returns a loss. The loop knows steps,
precision, EMA, checkpoints and signals. Batches and noise are pure functions of seed and shard
(ranks.py): a resumed run is, on a CPU, bit for bit the run that was never interrupted.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from lmdiff.config import TrainingConfig, to_dict
from lmdiff.training import guards
from lmdiff.training.callbacks import Evaluate, Watch
from lmdiff.training.checkpoints import latest_checkpoint
from lmdiff.training.interrupts import GracefulStop, stop
from lmdiff.training.launch import make_accelerator
from lmdiff.training.manifest import write_run
from lmdiff.training.metrics import MetricsFile
from lmdiff.training.precision import settled
from lmdiff.training.run import Run
from lmdiff.training.trackers import tracking


def train(
    config: TrainingConfig,
    module: nn.Module,
    batches: Callable[[int], Any],
    run_dir: Path,
    *,
    accelerator: Accelerator | None = None,
    evaluate: Evaluate | None = None,
    watch: Watch | None = None,
    round_steps: int = 1,
    onednn: bool = False,
    manifest: Mapping[str, Any] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train `module` for `config.max_steps` steps; at the end it holds the EMA weights.

    Args:
        config: the budget and the optimizer's settings.
        module: a `Trainable` (callbacks.py). Its train/eval modes are left as they are; initialise
            it under the same seed on all ranks, and build it the same way before a resume.
        batches: step -> this rank's batch. A pure function: a resume calls it from the middle.
            Where gradients are accumulated over n batches, it is called with step * n, then
            step * n + 1, ... A function of `shard_of(accelerator, number)` alone makes two ranks
            the same run as one rank that accumulates two.
        run_dir: gets run.json, metrics.jsonl and checkpoints/.
        accelerator: one of your own (other processes, accumulation); default: one is made.
        evaluate: (module with EMA weights, in eval mode; step) -> figures, logged as eval/NAME.
            It runs on every rank, without gradients; the main process's figures are kept.
        watch: told of each step, checkpoint and line of metrics.jsonl: (event, step, figures), on
            every rank. It may add to a line's figures before they are written. If it returns true
            for a step, on every rank alike, the run ends there, with a checkpoint.
        round_steps: steps that share something which a checkpoint does not hold, such as roll-outs.
            Checkpoints are written, and runs stopped, only after a whole round.
        onednn: whether fp32 products of matrices go to oneDNN where that is faster (precision.py).
            It is for large ones, and slows the small ones in the attention of a planner down.
        manifest: what else run.json should tell (plain JSON).
        resume: go on from the newest whole checkpoint. A finished run is left alone.
        quiet: no progress bar.

    Returns:
        The last line of metrics.jsonl.

    Raises:
        UserError: a setting, run directory, world size or checkpoint that does not fit, or a loss
            that stays non-finite.
        KeyboardInterrupt: Ctrl-C, after a checkpoint; the message names the command that resumes.
        SystemExit: the same for SIGTERM.
    """
    guards.check_config(config, round_steps)
    guards.check_sharding(config, module, evaluate is not None)
    accelerator = accelerator or make_accelerator()
    config = settled(config, accelerator.device)
    guards.check_accelerator(config, accelerator)
    description = guards.open_run(config, run_dir, manifest or {}, accelerator, resume)
    run = Run(config, module, accelerator, run_dir, evaluate, watch, round_steps, onednn)
    checkpoint = latest_checkpoint(run_dir) if resume else None
    if checkpoint is not None:
        run.restore(checkpoint)
    with MetricsFile(
        run_dir / "metrics.jsonl", run.progress.step, writes=accelerator.is_main_process
    ) as metrics:
        accelerator.wait_for_everyone()  # every rank has read what it needs before files change
        if run.progress.step < config.max_steps or run.owes_report(metrics):
            if accelerator.is_main_process:
                write_run(run_dir, description)
            hidden = quiet or not accelerator.is_main_process
            with (
                tracking(accelerator, config.tracker, run_dir, to_dict(config)),
                GracefulStop(hidden) as interrupt,
                guards.telling_what_is_kept(run_dir),
            ):
                _loop(run, batches, metrics, interrupt, hidden)
    run.ema.copy_to(run.parameters)
    accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)  # undo Accelerate's autocast
    return metrics.last


def _loop(
    run: Run,
    batches: Callable[[int], Any],
    metrics: MetricsFile,
    interrupt: GracefulStop,
    hidden: bool,
) -> None:
    start, end = run.progress.step, run.config.max_steps
    if run.owes_report(metrics):
        run.report(metrics)
    elif metrics.last.get("step") == start:
        run.averages.clear()  # the checkpoint is older than the line that told them
    ended = False
    with tqdm(total=end, initial=start, disable=hidden, unit="step", mininterval=0.5) as bar:
        for step in range(start, end):
            loss, stopping = run.step(batches, step, interrupt)
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            bar.update()
            ended = run.tell("step", {"loss": loss}) or ended
            # The checkpoint comes first: an evaluation that fails costs no training.
            whole = (step + 1) % run.round_steps == 0
            if whole and (stopping or ended or run.saves_at(step + 1)):
                run.save(metrics)
            if stopping and whole:
                bar.close()
                message = f"Stopped after step {step + 1} of {end}. {guards.go_on(run.run_dir)}"
                stop(stopping, message, shown=run.accelerator.is_main_process)
            last = ended and whole
            if last or run.reports_at(step + 1):
                run.report(metrics)
            if last:
                return
