"""`lmdiff bench checkpoint` and `ranks`: what safety and several processes cost a training.

On a machine that others use too, times alone say little: both sides of a ratio are measured in
turn, and medians are told.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmdiff.config import AgentConfig, TrainingConfig, load_agent, load_control_agent
from lmdiff.data.goal_states import GoalStates
from lmdiff.data.normalizer import Normalizer
from lmdiff.data.windows import Batch
from lmdiff.errors import UserError
from lmdiff.evaluation.bench_text import Table
from lmdiff.goals.grammar import load_grammar
from lmdiff.tasks.pointmaze import PointMaze
from lmdiff.training.checkpoints import list_checkpoints
from lmdiff.training.imitation import ImitationBatch, ImitationModule
from lmdiff.training.loop import train
from lmdiff.training.metrics import read_metrics

CPU_AGENTS = ("pointmaze-medium", "pointmaze-medium-frozen", "sudoku-sft", "sudoku-rl")
_STEPS_BETWEEN = 10
_STEPS, _LOGGED = 40, 5


def imitation_work(config: AgentConfig) -> tuple[ImitationModule, ImitationBatch]:
    """An agent's module with fresh weights, and a random batch of its size."""
    task, size, horizon = (
        PointMaze(config.task.name),
        config.training.batch_size,
        config.denoiser.horizon,
    )
    chunk = config.denoiser.stride * task.action_size
    channels = task.observation_size + chunk + 1
    module = ImitationModule(config, Normalizer(mean=[0.0] * channels, std=[1.0] * channels))
    generator = torch.Generator().manual_seed(0)
    prior = config.prior
    # As many distinct phrases as in training: a language model that is trained reads each once.
    known = load_grammar(task.grammar).phrases(task.places, "train", limit=size + prior.phrases)
    phrases = itertools.cycle([phrase.text for phrase in known])
    states = torch.randn(prior.phrases, prior.states, task.observation_size, generator=generator)
    said = torch.rand(size, generator=generator) < config.data.words_fraction
    windows = Batch(
        observation=torch.randn(size, horizon, task.observation_size, generator=generator),
        action=torch.randn(size, horizon, chunk, generator=generator),
        signal=torch.randn(size, horizon, 1, generator=generator),
        goal_state=torch.randn(size, task.observation_size, generator=generator),
        state_given=~said,
        phrases=[next(phrases) if words else None for words in said.tolist()],
    )
    described = list(itertools.islice(phrases, prior.phrases))
    return module, ImitationBatch(windows, GoalStates(described, states))


def checkpoint_share(agents: Sequence[str], repeats: int) -> Table:
    """A checkpoint (written, synced, read back and verified) beside the steps between two."""
    columns = {
        "agent": "agent",
        "megabytes": "MB",
        "checkpoint_ms": "a checkpoint",
        "step_ms": "a step",
        "every": "steps between two",
        "share": "share of training time, %",
    }
    rows = [_checkpoint(load_control_agent(agent), repeats) for agent in agents]
    return "Time of checkpoints", columns, rows


def _checkpoint(config: AgentConfig, repeats: int) -> dict[str, Any]:
    module, batch = imitation_work(config)
    steps, saves = [], []
    last = time.perf_counter()

    def watch(event: str, *_: Any) -> None:
        nonlocal last
        now = time.perf_counter()
        if event != "log":
            (steps if event == "step" else saves).append(1000 * (now - last))
        last = now

    training = TrainingConfig(
        max_steps=_STEPS_BETWEEN * repeats,
        checkpoint_every=_STEPS_BETWEEN,
        log_every=_STEPS_BETWEEN * repeats,
        batch_size=config.training.batch_size,
    )
    with tempfile.TemporaryDirectory() as folder:
        train(training, module, lambda _: batch, Path(folder), watch=watch, quiet=True)
        newest = list_checkpoints(Path(folder))[-1][1]
        size = sum(path.stat().st_size for path in newest.iterdir())
    step, save = float(np.median(steps)), float(np.median(saves))
    every = config.training.checkpoint_every
    return {
        "agent": config.name,
        "megabytes": round(size / 1e6, 1),
        "checkpoint_ms": _spread(saves),
        "step_ms": _spread(steps),
        "every": every,
        "share": round(100 * save / (every * step), 3),
    }


def ranks_beside_one(agents: Sequence[str], repeats: int) -> Table:
    """`lmdiff train` in one process with two threads, and in two with one each; equal batches.

    Both train in turn, `repeats` times; a ratio is the median of those of each turn.
    """
    if (os.cpu_count() or 1) < 2:
        raise UserError("Two ranks need two cores.")
    columns = {
        "agent": "agent",
        "batch": "batch",
        "one_ms": "step, one process",
        "two_ms": "step, two processes",
        "ratio": "ratio",
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for agent in agents or CPU_AGENTS:
            turns = [_turn(agent, Path(folder) / f"{agent}-{i}") for i in range(repeats)]
            ratios = [two / one for one, two in turns]
            rows.append(
                {
                    "agent": agent,
                    "batch": load_agent(agent).training.batch_size,
                    "one_ms": _spread([one for one, _ in turns]),
                    "two_ms": _spread([two for _, two in turns]),
                    "ratio": round(float(np.median(ratios)), 3),
                    "ratios": [round(ratio, 3) for ratio in ratios],
                }
            )
            print(rows[-1], file=sys.stderr)
    return "Two processes on two cores beside one", columns, rows


def _turn(agent: str, folder: Path) -> tuple[float, float]:
    """Milliseconds of a step in one process, and in two."""
    config = load_agent(agent)
    batch = config.training.batch_size
    half = ["--processes", "2"]
    if isinstance(config, AgentConfig):  # these, too, are of each process
        half += ["--prior.phrases", str(config.prior.phrases // 2)]
    one = _steps(agent, folder / "one", batch, "2")
    two = _steps(agent, folder / "two", batch // 2, "1", *half)
    return one, two


def _steps(agent: str, run_dir: Path, batch: int, threads: str, *words: str) -> float:
    """Milliseconds of a step: the median over a short run, its beginning left out."""
    command = [sys.executable, "-m", "lmdiff.cli", "train", agent, "--output", str(run_dir)]
    command += ["--quiet", "--training.max-steps", str(_STEPS), "--training.evaluate-every", "0"]
    command += ["--training.log-every", str(_LOGGED), "--training.batch-size", str(batch)]
    command += [*_cheap(agent, run_dir.parent), *words]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": threads}, capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    speeds = [line["steps_per_second"] for line in read_metrics(run_dir / "metrics.jsonl")]
    return 1000 / float(np.median(speeds[2:]))


def _cheap(agent: str, folder: Path) -> list[str]:
    """Less of what is done before the first step and after the last, and is not timed."""
    config = load_agent(agent)
    if isinstance(config, AgentConfig):
        return ["--task.steps", "20000", "--data.phrases", "300"]
    words = ["--task.examples", "500", "--sft.stop-at", "0"]
    if config.algorithm == "rl":
        words += ["--init", str(_fresh(agent, folder / "start"))]
    return words


def _fresh(agent: str, folder: Path) -> Path:
    """A saved agent with fresh weights: RL starts from one."""
    from lmdiff.pipelines.text_agents import make_text_model, save_text_agent
    from lmdiff.text.config import TextAgentConfig
    from lmdiff.text.tasks import make_task

    config = load_agent(agent)
    assert isinstance(config, TextAgentConfig)
    if not folder.exists():
        torch.manual_seed(0)
        parts = make_text_model(config.model, make_task(config.task).alphabet)
        save_text_agent(config, parts, folder / "agent", {})
    return folder


def _spread(times: Sequence[float]) -> dict[str, Any]:
    """Median and the middle half, in milliseconds."""
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75]).tolist()
    return {"mean": median, "low": low, "high": high, "unit": "ms"}
