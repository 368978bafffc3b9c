"""What a person sees of RL on text: completions, callbacks, and warnings of careless settings."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from lmdiff.text.rl_config import TextRLConfig
from lmdiff.training.text.rollouts import Rollout


class CompletionsLog:
    """completions.jsonl in the run's folder, and a table if one is asked for."""

    def __init__(self, args: TextRLConfig, writes: bool):
        self.args, self.writes = args, writes
        self.last: Rollout | None = None
        self.path: Path | None = None
        self._resume = self._begun = False

    def begin(self, run_dir: Path, resume: bool) -> None:
        """Name the file; what it holds is touched when there is something to write."""
        self.path, self._resume, self._begun = run_dir / "completions.jsonl", resume, False

    def write(self, step: int) -> None:
        """The last roll-out's first completions; nothing just after a resume."""
        if self.last is None or self.path is None or not self.writes:
            return
        if not self._begun:  # later lines belong to a future that was lost: its steps come again
            earlier = _lines(self.path) if self._resume else []
            kept = [f"{line}\n" for line in earlier if json.loads(line)["step"] < step]
            self.path.write_text("".join(kept), encoding="utf-8")
            self._begun = True
        rows = self._rows(step)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
        if self.args.log_completions:
            Console().print(_table(step, rows))

    def _rows(self, step: int) -> list[dict[str, Any]]:
        assert self.last is not None
        rollout = self.last
        count = self.args.num_completions_to_print or self.args.num_generations
        return [
            {
                "step": step,
                "prompt": rollout.prompts[i],
                "completion": rollout.completions[i],
                "rewards": {name: v[i] for name, v in rollout.scores.by_function.items()},
                "advantage": round(rollout.advantages[i].item(), 4),
            }
            for i in range(min(count, len(rollout.prompts)))
        ]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _table(step: int, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=f"Step {step}", show_lines=True)
    names = list(rows[0]["rewards"])
    for column in ("prompt", "completion", *names, "advantage"):
        table.add_column(column, overflow="fold")
    for row in rows:
        rewards = [row["rewards"][name] for name in names]
        shown = ["" if value is None else f"{value:.3g}" for value in rewards]
        prompt = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"])
        table.add_row(prompt, row["completion"], *shown, f"{row['advantage']:.2f}")
    return table


CallbackEvent = Literal[
    "on_train_begin", "on_step_end", "on_log", "on_evaluate", "on_save", "on_train_end"
]


class Callbacks:
    """Calls transformers' callbacks. Their `args` is the `TextRLConfig`."""

    def __init__(
        self,
        callbacks: Sequence[TrainerCallback],
        args: TextRLConfig,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
    ):
        self.callbacks, self.args = list(callbacks), args
        self.state, self.control = TrainerState(max_steps=args.max_steps), TrainerControl()
        self.given = {"model": model, "processing_class": tokenizer}

    def tell(self, event: CallbackEvent, step: int, **figures: Any) -> bool:
        """Call all; whether one of them wants the run to end."""
        self.state.global_step = step
        if "logs" in figures:
            self.state.log_history.append({**figures["logs"], "step": step})
        for callback in self.callbacks:
            act = getattr(callback, event)
            result = act(self.args, self.state, self.control, **self.given, **figures)
            self.control = self.control if result is None else result
        return self.control.should_training_stop


class Signs:
    """Warns, once each, of what was measured to make a model worse, or to teach it nothing.

    What was measured is in docs/text-rl.md (docs/results/rl-careless.json, by
    `python -m lmdiff.training.text.careless`): a high rate and several tokens a step, each drawn
    without regard to the others, each cost an agent some of what it had been taught, and together
    nearly all of it. A second update on a batch does less harm; its ratios reached 14.
    """

    FAST, SEVERAL_TOKENS, FAR_RATIO, EQUAL_GROUPS = 1e-4, 1.5, 5.0, 0.95

    def __init__(self, args: TextRLConfig):
        self.args = args
        self.told: set[str] = set()

    def look(self, figures: dict[str, Any]) -> None:
        """Look at a line of metrics."""
        tokens, rate = figures.get("tokens_per_step", 1.0), self.args.learning_rate
        # Several tokens of which the model is sure (a threshold) are another matter.
        if tokens > self.SEVERAL_TOKENS and rate > self.FAST and self.args.threshold is None:
            self._tell(
                "tokens",
                f"Roll-outs write {tokens:.1f} tokens a denoising step, each without regard to the "
                f"others, and learning_rate = {rate:g} is high: each alone made a Sudoku agent "
                "worse, and both together far worse (docs/text-rl.md). Set num_inference_steps to "
                f"{self.args.max_completion_length} (one token a step) or a threshold, and "
                "learning_rate to 5e-5.",
            )
        if figures.get("ratio/max", 1.0) > self.FAR_RATIO:
            self._tell(
                "ratio",
                f"A ratio to the policy that sampled has reached {figures['ratio/max']:.3g}: the "
                "updates on one batch of roll-outs take the policy too far from it. Set "
                "num_iterations = 1, or lower the learning_rate.",
            )
        equal = figures.get("frac_reward_zero_std", 0.0)
        # Without a baseline, a group that is solved throughout teaches all the same.
        if equal > self.EQUAL_GROUPS and self.args.baseline != "none":
            self._tell(
                "equal",
                f"In {equal:.0%} of the groups all rewards are equal, "
                "and such groups teach nothing: the task is solved, or too hard, or "
                "needs a higher temperature or more num_generations.",
            )

    def _tell(self, name: str, message: str) -> None:
        if name not in self.told:
            self.told.add(name)
            warnings.warn(message, stacklevel=2)
