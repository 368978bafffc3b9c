"""RL of text, compared: estimator x objective pairs from the same starts, under one budget.

    python -m lmdiff.training.text.comparison --task sudoku --output docs/results/rl-sudoku.json

For every seed one agent is taught (TASK-sft), and every pair goes on from it (TASK-rl). Learning
rates are searched on a start and on validation prompts of their own; held-out prompts are asked
once, of the last weights. Every finished run is kept, so that a stopped comparison goes on where it
was, and several processes may each do some of the seeds or pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from lmdiff.errors import UserError
from lmdiff.evaluation.intervals import Interval, wilson
from lmdiff.evaluation.results import write_result
from lmdiff.goals.descriptions import Split
from lmdiff.training.text.runs import seeded, solved, trained

_SEARCH_SEED = 100  # of the start on which learning rates are searched; not among --seeds

PAIRS = (
    ("elbo", "bgpo"),
    ("elbo-complementary", "sequence-ratio"),
    ("mean-field", "token-ratio"),
    ("coupled", "token-ratio"),
    ("trace", "token-ratio"),
    ("gauss-legendre", "sequence-ratio"),
    ("elbo-blocks", "spg"),
    ("mean-field", "wd1"),
)
"""BGPO, ESPO, diffu-GRPO, coupled-GRPO, TraceRL, GDPO, SPG, wd1."""
_ONE_SAMPLE = ("coupled", "elbo-complementary", "trace")  # several masked copies for one sample
_SAMPLES = 2  # of the others


@dataclass(frozen=True)
class Comparison:
    """What is compared."""

    task: Literal["sudoku", "countdown", "countdown-sums"] = "sudoku"
    pairs: tuple[str, ...] = tuple(f"{a}+{b}" for a, b in PAIRS)
    """ESTIMATOR+OBJECTIVE."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the starts, the roll-outs and the held-out prompts."""
    start: int | None = None
    """Seed of one start for all of them; by default each has its own."""
    steps: int = 160
    """Updates of each run."""
    completions: int | None = None
    """A batch's, for a smaller budget than the recipe's."""
    rates: tuple[float, ...] = (2e-4,)
    """Learning rates; of several, each pair's best on validation prompts is taken."""
    search_steps: int = 80
    """Updates of a run of the search."""
    prompts: int = 500
    """Held-out prompts of each seed."""
    runs: Path = Path("runs/comparison")
    """Where runs are kept."""
    output: Path | None = None
    """Result file (docs/results/NAME.json); none: only runs are made."""

    def run(self) -> None:
        """Train and measure what is not there yet, then write the table."""
        rates = {pair: self._best_rate(pair) for pair in self.pairs}
        before, after = {}, {pair: {} for pair in self.pairs}
        for seed in self.seeds:
            start = self._start(seed)
            before[seed] = self._solved(start, "held_out", seed)
            for pair in self.pairs:
                run = self._trained(pair, rates[pair], seed, self.steps)
                after[pair][seed] = self._solved(run, "held_out", seed)
        if self.output is not None:
            rows = [self._row(pair, rates[pair], before, after[pair]) for pair in self.pairs]
            write_result(self.output, self._command(), self.seeds, rows, columns=_COLUMNS)

    def _best_rate(self, pair: str) -> float:
        if len(self.rates) == 1:
            return self.rates[0]

        def validation(rate: float) -> int:
            run = self._trained(pair, rate, _SEARCH_SEED, self.search_steps)
            return self._solved(run, "validation", _SEARCH_SEED)

        return max(self.rates, key=validation)

    def _start(self, seed: int) -> Path:
        if self.start is not None and seed in self.seeds:
            seed = self.start
        run_dir = self.runs / f"{self.task}-sft-{seed}"
        return trained(seeded(f"{self.task}-sft", seed), run_dir)

    def _trained(self, pair: str, rate: float, seed: int, steps: int) -> Path:
        estimator, _, objective = pair.partition("+")
        config = seeded(f"{self.task}-rl", seed)
        samples = 1 if estimator in _ONE_SAMPLE else _SAMPLES
        rl = replace(config.rl, estimator=estimator, objective=objective, samples=samples)
        size = self.completions or config.training.batch_size
        training = replace(config.training, learning_rate=rate, max_steps=steps, batch_size=size)
        smaller = "" if self.completions is None else f"x{size}"
        run_dir = self.runs / f"{self.task}-{pair}-{rate:g}-{steps}{smaller}-{seed}"
        return trained(replace(config, rl=rl, training=training), run_dir, self._start(seed))

    def _solved(self, run_dir: Path, split: Split, seed: int) -> int:
        config = seeded(f"{self.task}-rl", seed)
        return solved(run_dir, config, split, self.prompts, seed)

    def _row(
        self, pair: str, rate: float, before: dict[int, int], after: dict[int, int]
    ) -> dict[str, Any]:
        estimator, _, objective = pair.partition("+")
        return {
            "task": self.task,
            "estimator": estimator,
            "objective": objective,
            "learning_rate": rate,
            "updates": self.steps,
            "completions": self.completions or seeded(f"{self.task}-rl", 0).training.batch_size,
            "before": self._share(list(before.values())).to_dict(),
            "after": self._share(list(after.values())).to_dict(),
            "each_before": ", ".join(f"{100 * n / self.prompts:.0f}" for n in before.values()),
            "each_after": ", ".join(f"{100 * n / self.prompts:.0f}" for n in after.values()),
        }

    def _share(self, solved: Sequence[int]) -> Interval:
        return wilson(sum(solved), self.prompts * len(solved))

    def _command(self) -> str:
        words = [f"--task {self.task}", f"--seeds {' '.join(map(str, self.seeds))}"]
        words += [f"--steps {self.steps}", f"--rates {' '.join(f'{r:g}' for r in self.rates)}"]
        words += [f"--search-steps {self.search_steps}", f"--pairs {' '.join(self.pairs)}"]
        if self.start is not None:
            words.append(f"--start {self.start}")
        if self.completions is not None:
            words.append(f"--completions {self.completions}")
        if self.prompts != Comparison.prompts:
            words.append(f"--prompts {self.prompts}")
        return " ".join(["python -m lmdiff.training.text.comparison", *words])


_COLUMNS = {
    "task": "task",
    "estimator": "estimator",
    "objective": "objective",
    "learning_rate": "learning rate",
    "updates": "updates",
    "completions": "completions each",
    "before": "solved before, %",
    "after": "after, %",
    "each_after": "seeds",
}


if __name__ == "__main__":
    try:
        tyro.cli(Comparison).run()
    except UserError as error:
        raise SystemExit(f"lmdiff: {error}") from None
