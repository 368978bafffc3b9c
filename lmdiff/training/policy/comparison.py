"""Algorithms for policies, compared: the same recordings, networks, updates and starts.

    python -m lmdiff.training.policy.comparison --output docs/results/offline-rl.json

Every world and seed has its own recording; every algorithm learns from it, and acts from the same
starts under the same taught sentences. Every finished run is kept, so that a stopped comparison
goes on where it was, and several processes may each do some of the seeds, worlds or algorithms.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from lmdiff.algos.config import AlgorithmName
from lmdiff.config import load_agent
from lmdiff.errors import UserError
from lmdiff.evaluation.agents import load_policy
from lmdiff.evaluation.intervals import wilson
from lmdiff.evaluation.policy_language import draw_told, run_told, world_of
from lmdiff.evaluation.policy_rollout import Sampling
from lmdiff.evaluation.results import write_result
from lmdiff.goals.sayings import load_sayings
from lmdiff.policy_config import Dataset, PolicyAgentConfig
from lmdiff.training.files import replace_json
from lmdiff.training.policy.agent import train_policy_agent

_COLUMNS = {
    "world": "world",
    "algorithm": "algorithm",
    "denoising_steps": "denoising steps",
    "success": "success, %",
    "recorded": "of the recorded episodes, %",
    "each": "seeds",
}


@dataclass(frozen=True)
class Comparison:
    """What is compared."""

    agent: str = "metaworld-mixed"
    """Recipe of which world, algorithm and seeds are replaced."""
    worlds: tuple[str, ...] = ()
    """Default: the recipe's."""
    dataset: Dataset | None = None
    """What is recorded of the experts; default: the recipe's."""
    algorithms: tuple[AlgorithmName, ...] = ("bc", "awr", "idql", "fql", "qc", "gtp")
    denoising_steps: tuple[int, ...] = ()
    """Each policy acts with each of these; default: the recipe's number."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of recording, training and starts."""
    steps: int | None = None
    """Updates; default: the recipe's."""
    episodes: int = 50
    """Starts for each seed."""
    runs: Path = Path("runs/comparison")
    """Where runs are kept."""
    output: Path | None = None
    """Result file (docs/results/NAME.json); none: only runs are made."""

    def run(self) -> None:
        """Train and measure what is not there yet, then write the table."""
        base = load_agent(self.agent)
        if not isinstance(base, PolicyAgentConfig):
            raise UserError(f"{self.agent} is no policy: compare agents of kind policy.")
        numbers = self.denoising_steps or (base.evaluation.num_inference_steps,)
        rows = []
        for world in self.worlds or (base.world.name,):
            for algorithm in self.algorithms:
                runs = {s: self._trained(base, world, algorithm, s) for s in self.seeds}
                for number in numbers:
                    counts = [self._successes(run, seed, number) for seed, run in runs.items()]
                    rows.append(self._row(world, algorithm, number, counts, [*runs.values()]))
        if self.output is not None:
            write_result(self.output, self._command(), self.seeds, rows, columns=_COLUMNS)

    def _trained(
        self, base: PolicyAgentConfig, world: str, algorithm: AlgorithmName, seed: int
    ) -> Path:
        config = replace(
            base,
            name=f"{world}-{algorithm}",
            world=replace(
                base.world, name=world, dataset=self.dataset or base.world.dataset, data_seed=seed
            ),
            algorithm=replace(base.algorithm, name=algorithm),
            training=replace(
                base.training, seed=seed, max_steps=self.steps or base.training.max_steps
            ),
        )
        told = f"{world}-{self.dataset}" if self.dataset else world
        run_dir = self.runs / f"{told}-{algorithm}-{config.training.max_steps}-{seed}"
        if not (run_dir / "agent" / "model_index.json").is_file():
            train_policy_agent(config, run_dir, resume=(run_dir / "run.json").is_file())
        return run_dir

    def _successes(self, run_dir: Path, seed: int, denoising_steps: int) -> int:
        """Episodes that succeed; measured once."""
        file = run_dir / f"success-{denoising_steps}-{self.episodes}.json"
        if not file.exists():
            pipe = load_policy(run_dir / "agent")
            world = world_of(pipe.config["world"])
            # Starts that no other seed has: 1000 is the first seed that never trains.
            told = draw_told(world, load_sayings(world.family), "train", self.episodes, 1000 + seed)
            own = pipe.config["evaluation"]
            sampling = Sampling(denoising_steps, own["guidance_scale"])
            with torch.no_grad():
                outcomes = run_told(pipe, told, sampling, 1000 + seed)
            replace_json(file, {"successes": sum(o.success for o in outcomes)})
        return int(json.loads(file.read_text(encoding="utf-8"))["successes"])

    def _row(
        self, world: str, algorithm: str, number: int, counts: list[int], runs: list[Path]
    ) -> dict[str, Any]:
        rate = wilson(sum(counts), self.episodes * len(counts))
        return {
            "world": world,
            "algorithm": algorithm,
            "denoising_steps": number,
            "success": rate.to_dict(),
            "recorded": self._recorded(runs),
            "each": ", ".join(f"{100 * count / self.episodes:.0f}" for count in counts),
        }

    def _recorded(self, runs: list[Path]) -> dict[str, float]:
        """Share of the recorded episodes in which what was asked was achieved."""
        from lmdiff.config import agent_from_dict
        from lmdiff.data.demonstrations import load_or_record

        achieved = episodes = 0
        for run_dir in runs:
            run = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
            config = agent_from_dict(run["manifest"]["agent"])
            assert isinstance(config, PolicyAgentConfig)
            recording = load_or_record(config.world)
            achieved += len(set(recording.episode[recording.success]))
            episodes += len(recording.lengths)
        return wilson(achieved, episodes).to_dict()

    def _command(self) -> str:
        words = ["python -m lmdiff.training.policy.comparison", f"--agent {self.agent}"]
        for name in ("worlds", "algorithms", "denoising_steps", "seeds"):
            values = getattr(self, name)
            if values:
                words.append(f"--{name.replace('_', '-')} {' '.join(map(str, values))}")
        if self.dataset:
            words.append(f"--dataset {self.dataset}")
        words.append(f"--episodes {self.episodes}")
        if self.steps:
            words.append(f"--steps {self.steps}")
        return " ".join(words)


if __name__ == "__main__":
    tyro.cli(Comparison).run()
