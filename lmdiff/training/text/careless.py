"""Which careless setting breaks RL of text: learning rate x tokens a step x updates a batch.

    python -m lmdiff.training.text.careless --output docs/results/rl-careless.json

Agents that already solve most Sudoku puzzles are trained on under each of the eight combinations,
so that there is much to lose: with BGPO as its paper has it (four masks, rewards compared within
groups), the reward of the peers, and the last weights instead of averaged ones. What
`lmdiff.training.text.rl_logs.Signs` warns of comes from here.
"""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from lmdiff.errors import UserError
from lmdiff.evaluation.intervals import wilson
from lmdiff.evaluation.results import write_result
from lmdiff.training.metrics import read_metrics
from lmdiff.training.text.runs import seeded, solved, trained

RATES = (5e-5, 2e-4)
TOKENS_A_STEP = (1, 4)
UPDATES_A_BATCH = (1, 2)


@dataclass(frozen=True)
class CarelessStudy:
    """Eight ways to train the same starts."""

    seeds: tuple[int, ...] = (0,)
    """Of the starts and the roll-outs."""
    start: float = 0.75
    """Share of the validation puzzles at which SFT of a start ends."""
    steps: int = 20
    """Updates of each run."""
    completions: int = 64
    """A batch's, 8 of a puzzle."""
    prompts: int = 200
    """Puzzles of unseen grids that each seed's agents are asked."""
    runs: Path = Path("runs/careless")
    """Where runs are kept."""
    output: Path | None = None
    """Result file (docs/results/NAME.json); none: only runs are made."""

    def run(self) -> None:
        """Train and measure what is not there yet, then write the table."""
        rows = [self._row("the start", [self._start(seed) for seed in self.seeds], {})]
        for rate, tokens, updates in itertools.product(RATES, TOKENS_A_STEP, UPDATES_A_BATCH):
            settings = {"learning_rate": rate, "tokens": tokens, "updates": updates}
            runs = [self._trained(rate, tokens, updates, seed) for seed in self.seeds]
            rows.append(self._row("trained", runs, settings))
        if self.output is not None:
            write_result(self.output, self._command(), self.seeds, rows, columns=_COLUMNS)

    def _start(self, seed: int) -> Path:
        config = seeded("sudoku-sft", seed)
        config = replace(config, sft=replace(config.sft, stop_at=self.start))
        return trained(config, self.runs / f"start-{seed}")

    def _trained(self, rate: float, tokens: int, updates: int, seed: int) -> Path:
        config = seeded("sudoku-rl", seed)
        task = replace(config.task, rewards=("sudoku",))
        rl = replace(
            config.rl,
            estimator="elbo",
            samples=4,
            baseline="mean",
            scale_rewards="group",
            threshold=None,
            num_inference_steps=config.sampling.generation_length // tokens,
            num_iterations=updates,
        )
        training = replace(
            config.training,
            learning_rate=rate,
            warmup_steps=0,
            ema_decay=0.0,
            max_steps=self.steps,
            batch_size=self.completions,
            log_every=1,
        )
        config = replace(config, task=task, rl=rl, training=training)
        return trained(config, self.runs / f"{rate:g}-{tokens}-{updates}-{seed}", self._start(seed))

    def _row(self, what: str, runs: list[Path], settings: dict[str, Any]) -> dict[str, Any]:
        config = seeded("sudoku-rl", 0)
        counts = [
            solved(run, config, "held_out", self.prompts, seed)
            for run, seed in zip(runs, self.seeds, strict=True)
        ]
        row = {"agent": what, **settings}
        if settings:
            lines = [line for run in runs for line in read_metrics(run / "metrics.jsonl")]
            row["ratio"] = max(line["ratio/max"] for line in lines)
        return row | {"solved": wilson(sum(counts), self.prompts * len(counts)).to_dict()}

    def _command(self) -> str:
        words = [f"--seeds {' '.join(map(str, self.seeds))}", f"--start {self.start:g}"]
        words += [f"--steps {self.steps}", f"--completions {self.completions}"]
        return " ".join(["python -m lmdiff.training.text.careless", *words])


_COLUMNS = {
    "agent": "agent",
    "learning_rate": "learning rate",
    "tokens": "tokens a denoising step",
    "updates": "updates a batch",
    "ratio": "largest ratio",
    "solved": "solved, %",
}


if __name__ == "__main__":
    try:
        tyro.cli(CarelessStudy).run()
    except UserError as error:
        raise SystemExit(f"lmdiff: {error}") from None
