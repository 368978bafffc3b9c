"""The state of one run: the module with all that trains it, one step of it, its checkpoints.

When to step, save, report and stop is the loop's business (loop.py); a `Run` knows how.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from lmdiff.config import TrainingConfig
from lmdiff.disk import telling_of_the_disk
from lmdiff.errors import UserError
from lmdiff.training import guards
from lmdiff.training.callbacks import Evaluate, Event, Watch
from lmdiff.training.checkpoints import Checkpoint, save_checkpoint
from lmdiff.training.interrupts import GracefulStop
from lmdiff.training.metrics import Averages, MetricsFile
from lmdiff.training.optimizer import adamw, rate_at, schedule, set_updates
from lmdiff.training.precision import fast_fp32
from lmdiff.training.ranks import gather_numbers, raising_together, shard_of
from lmdiff.training.seeds import EVALUATION, noise_generator, seed_global
from lmdiff.training.sharding import shard, whole
from lmdiff.training.state import (
    Progress,
    Tensors,
    averaged,
    capture,
    follow,
    frozen_fingerprint,
    restore,
    trainable_parameters,
)


class Run:
    """The module with all that trains it: optimizer, schedule, EMA, counters."""

    def __init__(
        self,
        config: TrainingConfig,
        module: nn.Module,
        accelerator: Accelerator,
        run_dir: Path,
        evaluate: Evaluate | None,
        watch: Watch | None,
        round_steps: int,
        onednn: bool,
    ) -> None:
        self.config, self.module, self.accelerator = config, module, accelerator
        self.run_dir, self.evaluate = run_dir, evaluate
        self.watch, self.round_steps = watch, round_steps
        self.onednn = onednn and config.mixed_precision == "no"
        self.frozen = frozen_fingerprint(module)
        sharded = config.shard and accelerator.num_processes > 1
        if sharded:
            shard(module, accelerator)
        module.to(accelerator.device)
        self.parameters = list(trainable_parameters(module).values())
        if not self.parameters:
            raise UserError("Nothing to train: no parameter of the module requires a gradient.")
        self.optimizer = adamw(config, self.parameters)
        self.schedule = schedule(config, self.optimizer)
        # diffusers' decay (1 + n) / (10 + n), capped by ours, soon forgets the initial weights.
        # Sharded tensors have no `_foreach_copy_`.
        self.ema = EMAModel(self.parameters, decay=config.ema_decay, foreach=not sharded)
        self.model = module if sharded else accelerator.prepare_model(module)
        self.prepared_optimizer = accelerator.prepare_optimizer(self.optimizer)
        accelerator.step = 0  # accumulation starts afresh, whatever was trained with it before
        # The wrapper is compiled and the module is not, so that names in checkpoints stay.
        self.forward = torch.compile(self.model) if config.compile else self.model
        self.progress, self.averages = Progress(), Averages()
        self.saved_step = self.timed_steps = 0
        self.seconds = 0.0

    def step(
        self, batches: Callable[[int], Any], step: int, interrupt: GracefulStop
    ) -> tuple[float, int]:
        """One optimizer step: its loss, and the signal that some rank got (0: none)."""
        began = time.perf_counter()
        seed, device = self.config.seed, self.accelerator.device
        accumulation = self.accelerator.gradient_accumulation_steps
        values: dict[str, float] = {}
        broken = -1  # the last shard with a loss that is not finite
        for micro in range(step * accumulation, (step + 1) * accumulation):
            shard = shard_of(self.accelerator, micro)
            seed_global(seed, shard)
            generator = noise_generator(seed, shard, device=device)
            batch = send_to_device(batches(micro), device)
            products = fast_fp32(device) if self.onednn else nullcontext()
            with self.accelerator.accumulate(self.model), products:
                with self._autocast():
                    out = self.forward(batch, generator)
                self.accelerator.backward(out["loss"])
            names = sorted(out)
            # One transfer for all of them: each .item() would wait for the device.
            numbers = torch.stack([out[name].detach().float() for name in names]).tolist()
            for name, number in zip(names, numbers, strict=True):
                values[name] = values.get(name, 0.0) + number / accumulation
            broken = broken if math.isfinite(numbers[names.index("loss")]) else shard
        limit = self.config.gradient_clip or float("inf")
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit)
        values["grad_norm"] = float(whole(cast(Tensor, norm)))
        fault, stopping = self._agree(broken, values["grad_norm"], interrupt.signal)
        self.progress.step = step + 1
        self._update(fault)
        if not fault:
            self.averages.add(values)
        self.seconds += time.perf_counter() - began
        self.timed_steps += 1
        return values["loss"], stopping

    def _update(self, fault: str) -> None:
        """Step the weights and their average, or leave both alone where something is not finite."""
        progress = self.progress
        if fault:
            progress.skipped += 1
            progress.skipped_in_a_row += 1
            guards.tell_skipped(self.config, progress.step, fault, progress.skipped_in_a_row)
        else:
            self.prepared_optimizer.step()
            self.schedule.step()
            follow(self.ema, self.parameters, self.config.ema_decay)
            progress.updates += 1
            progress.skipped_in_a_row = 0
        self.prepared_optimizer.zero_grad()

    def _agree(self, broken: int, norm: float, signal_number: int) -> tuple[str, int]:
        """What is not finite ('' if all is), and the signal that some rank got.

        All ranks skip, or stop, where one does: else they would diverge, or wait for ever.
        """
        mine = [broken, not math.isfinite(norm), signal_number]
        shard, bad_norm, stopping = gather_numbers(self.accelerator, mine).amax(0).int().tolist()
        if shard >= 0:
            rank = shard % self.accelerator.num_processes
            return f"the loss of batch {shard} (rank {rank})", stopping
        return "the gradient" if bad_norm else "", stopping

    def _autocast(self) -> torch.autocast:
        # Our own: Accelerate's precision is one for the whole process, and patches the forward.
        enabled = self.config.mixed_precision == "bf16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled)

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due after this step, the last one of a round."""
        past = range(step - self.round_steps + 1, step + 1)
        return any(self._due(self.config.checkpoint_every, at) for at in past)

    def tell(self, event: Event, figures: dict[str, Any]) -> bool:
        """Tell the watcher; whether it wants the run to end."""
        return self.watch is not None and bool(self.watch(event, self.progress.step, figures))

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation is due after this step."""
        return self.evaluate is not None and self._due(self.config.evaluate_every, step)

    def reports_at(self, step: int) -> bool:
        """Whether a line of metrics.jsonl is due after this step."""
        return self._due(self.config.log_every, step) or self.evaluates_at(step)

    def _due(self, every: int, step: int) -> bool:
        return step == self.config.max_steps or (every > 0 and step % every == 0)

    def owes_report(self, metrics: MetricsFile) -> bool:
        """Whether the run was stopped between a checkpoint and its line in metrics.jsonl."""
        step = self.progress.step
        return step > 0 and metrics.last.get("step") != step and self.reports_at(step)

    def save(self, metrics: MetricsFile) -> None:
        """Write a checkpoint, unless this step has one."""
        if self.saved_step == self.progress.step:
            return
        tensors = capture(self.module, self.ema, self.optimizer)
        with raising_together(self.accelerator), telling_of_the_disk(self.run_dir):
            if self.accelerator.is_main_process:
                self._write_checkpoint(metrics, tensors)
        self.saved_step = self.progress.step
        self.tell("save", {})

    def _write_checkpoint(self, metrics: MetricsFile, tensors: dict[str, Tensors]) -> None:
        metrics.sync()
        state = {
            "progress": dataclasses.asdict(self.progress),
            "averages": self.averages.state(),
            "frozen": self.frozen,
        }
        keep = self.config.keep_checkpoints
        save_checkpoint(self.run_dir, self.progress.step, tensors, state, keep)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was written.

        Raises:
            UserError: it is of another network or another frozen language model.
        """
        if checkpoint.state["frozen"] != self.frozen:
            raise UserError(
                f"{checkpoint.path} was trained beside other frozen weights than the module has "
                "now (another language model?). Resume with the one that it was trained with."
            )
        restore(checkpoint, self.module, self.ema, self.optimizer)
        self.progress = Progress(**checkpoint.state["progress"])
        self.averages.load(checkpoint.state["averages"])
        self.ema.optimization_step = self.progress.updates
        set_updates(self.schedule, self.progress.updates)
        self.saved_step = self.progress.step

    def report(self, metrics: MetricsFile) -> None:
        """Evaluate if it is time, and write the line of this step."""
        step = self.progress.step
        entry: dict[str, Any] = {"step": step, "loss": None}
        entry |= self.averages.means(self.accelerator)
        entry["lr"] = rate_at(self.schedule, max(self.progress.updates - 1, 0))
        entry["skipped"] = self.progress.skipped
        speed = self.timed_steps / self.seconds if self.timed_steps else None
        entry["steps_per_second"] = speed and round(speed, 3)
        if self.evaluates_at(step):
            entry |= {f"eval/{name}": float(value) for name, value in self._evaluated().items()}
        self.tell("log", entry)
        metrics.write(entry)
        self.accelerator.log({k: v for k, v in metrics.last.items() if v is not None}, step=step)
        self.averages.clear()
        self.seconds, self.timed_steps = 0.0, 0

    def _evaluated(self) -> dict[str, float]:
        """The evaluation's figures, under EMA weights; the weights and modes come back after."""
        assert self.evaluate is not None
        with averaged(self.module, self.ema), torch.no_grad():
            # Whatever it draws, a resumed run evaluates alike.
            rank = self.accelerator.process_index
            seed_global(self.config.seed, self.progress.step, rank, EVALUATION)
            return self.evaluate(self.module, self.progress.step)
