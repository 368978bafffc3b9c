"""What own experience adds: success before and after, and the worst stretch on the way.

    python -m lmdiff.training.policy.online_study --output docs/results/online.json

For every seed, the start is trained, then each of the methods from it. Starts of episodes, phrases
and noise are the same before and after. Finished runs are kept, and a stopped study goes on.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from lmdiff.config import load_agent
from lmdiff.errors import UserError
from lmdiff.evaluation.agents import load_policy
from lmdiff.evaluation.intervals import wilson
from lmdiff.evaluation.policy_language import draw_told, run_told, world_of
from lmdiff.evaluation.policy_rollout import Sampling
from lmdiff.evaluation.results import write_result
from lmdiff.goals.sayings import load_sayings
from lmdiff.policy_config import PolicyAgentConfig
from lmdiff.training.files import replace_json
from lmdiff.training.policy.agent import train_policy_agent

_STRETCH = 5000  # environment steps over which the worst success on the way is told
_COLUMNS = {
    "agent": "agent",
    "environment_steps": "environment steps",
    "before": "before, %",
    "after": "after, %",
    "worst": "worst 5,000 steps, %",
    "each": "seeds, before and after",
}


@dataclass(frozen=True)
class Study:
    """What is measured."""

    start: str = "metaworld-push-few"
    """Recipe of the start."""
    agents: tuple[str, ...] = ("metaworld-push-self", "metaworld-push-fpo")
    """Recipes that go on from it."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of trainings, own experience and starts of episodes; the recording is the same for all."""
    episodes: int = 100
    """Episodes of each measurement."""
    runs: Path = Path("runs/online")
    """Where runs are kept."""
    output: Path | None = None
    """Result file (docs/results/NAME.json); none: only runs are made."""

    def run(self) -> None:
        """Train and measure what is not there yet, then write the table."""
        starts = {seed: self._trained(self.start, seed, None) for seed in self.seeds}
        rows = []
        for agent in self.agents:
            runs = {seed: self._trained(agent, seed, starts[seed]) for seed in self.seeds}
            before = [self._successes(starts[seed], seed) for seed in self.seeds]
            after = [self._successes(runs[seed], seed) for seed in self.seeds]
            rows.append(self._row(agent, [*runs.values()], before, after))
        if self.output is not None:
            write_result(self.output, self._command(), self.seeds, rows, columns=_COLUMNS)

    def _trained(self, agent: str, seed: int, start: Path | None) -> Path:
        base = load_agent(agent)
        if not isinstance(base, PolicyAgentConfig):
            raise UserError(f"{agent} is no policy: study agents of kind policy.")
        config = replace(base, training=replace(base.training, seed=seed))
        run_dir = self.runs / f"{agent}-{seed}"
        if not (run_dir / "agent" / "model_index.json").is_file():
            init = None if start is None else start / "agent"
            resume = (run_dir / "checkpoints").is_dir()
            train_policy_agent(config, run_dir, init=init, resume=resume)
        return run_dir

    def _successes(self, run_dir: Path, seed: int) -> int:
        """Episodes that succeed; measured once."""
        file = run_dir / f"success-{self.episodes}.json"
        if not file.exists():
            pipe = load_policy(run_dir / "agent")
            world = world_of(pipe.config["world"])
            told = draw_told(world, load_sayings(world.family), "train", self.episodes, 1000 + seed)
            own = pipe.config["evaluation"]
            sampling = Sampling(own["num_inference_steps"], own["guidance_scale"])
            outcomes = run_told(pipe, told, sampling, 1000 + seed)
            replace_json(file, {"successes": sum(o.success for o in outcomes)})
        return int(json.loads(file.read_text(encoding="utf-8"))["successes"])

    def _row(
        self, agent: str, runs: list[Path], before: list[int], after: list[int]
    ) -> dict[str, Any]:
        curves = [curve(run_dir) for run_dir in runs]
        pairs = zip(before, after, strict=True)
        count = self.episodes * len(runs)
        return {
            "agent": agent,
            "environment_steps": max(rounds[-1][0] for rounds in curves),
            "before": wilson(sum(before), count).to_dict(),
            "after": wilson(sum(after), count).to_dict(),
            "worst": round(100 * min(worst(rounds) for rounds in curves), 1),
            "each": ", ".join(
                f"{100 * first / self.episodes:.0f} and {100 * last / self.episodes:.0f}"
                for first, last in pairs
            ),
        }

    def _command(self) -> str:
        words = ["python -m lmdiff.training.policy.online_study", f"--start {self.start}"]
        words += [f"--agents {' '.join(self.agents)}", f"--seeds {' '.join(map(str, self.seeds))}"]
        return " ".join([*words, f"--episodes {self.episodes}"])


def curve(run_dir: Path) -> list[tuple[int, float]]:
    """(environment steps so far, success of the episodes) of each line of a run's metrics."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    told = [json.loads(line) for line in lines]
    return [
        (line["environment_steps"], line["rollout/success"])
        for line in told
        if line.get("rollout/success") is not None
    ]


def worst(rounds: list[tuple[int, float]], stretch: int = _STRETCH) -> float:
    """Lowest success, weighted by steps, over stretches of at least so many environment steps.

    A run that is shorter is one stretch.
    """
    ends = [end for end, _ in rounds]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    means = []
    for first in range(len(rounds)):
        steps, gained = 0, 0.0
        for length, (_, success) in zip(lengths[first:], rounds[first:], strict=True):
            steps, gained = steps + length, gained + length * success
            if steps >= stretch:
                break
        if steps >= stretch or first == 0:
            means.append(gained / max(steps, 1))
    return min(means)


if __name__ == "__main__":
    tyro.cli(Study).run()
