"""kill -9 again and again, as a program: python crash_trials.py FOLDER TRIALS [OUTPUT.json].

Every kind of training is killed at random moments (`random`) and by itself, at each of its calls
that touch the disk (`write`), until it comes to its end; then it is compared, bit for bit, with the
run that nobody killed. Runs are forked: to import torch for each would take a hundred times as
long. This process itself trains nothing, for autograd does not survive a fork.
"""

import builtins
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rank_program import agent_config, imitation_batch, imitation_module
from training_toy import Toy, batches, make_config

from lmdiff.config import load_agent
from lmdiff.training import checkpoints
from lmdiff.training.checkpoints import latest_checkpoint
from lmdiff.training.loop import train
from lmdiff.training.metrics import read_metrics

STEPS = 60
MOST_KILLS_A_RUN = 12
PLACES = {"random": "at random moments", "write": "while it writes"}
COLUMNS = {
    "training": "training",
    "where": "killed",
    "killed": "times",
    "runs": "runs",
    "bit_identical": "bit-identical ends",
    "lost": "checkpoints lost",
}


def toy(run_dir: Path, resume: bool) -> None:
    """A network of a few weights with dropout, a buffer and noise: hundreds of steps a second."""
    config = make_config(max_steps=STEPS, checkpoint_every=2, log_every=3)
    train(config, Toy(), batches, run_dir, resume=resume, quiet=True)


def imitation(run_dir: Path, resume: bool) -> None:
    """The planner with its goal prior; the language model is frozen."""
    _imitation("frozen", run_dir, resume)


def lora(run_dir: Path, resume: bool) -> None:
    """The same, with LoRA in the language model."""
    _imitation("lora", run_dir, resume)


def _imitation(adaptation: str, run_dir: Path, resume: bool) -> None:
    config = agent_config(adaptation)
    train(
        make_config(max_steps=STEPS, checkpoint_every=2, log_every=3, learning_rate=1e-3),
        imitation_module(config),
        lambda step: imitation_batch(config, step),
        run_dir,
        resume=resume,
        quiet=True,
    )


def pointmaze(run_dir: Path, resume: bool) -> None:
    """A whole agent, from data to the saved pipeline, tiny."""
    from lmdiff.training.agent import train_agent

    agent = load_agent("pointmaze-medium")
    config = replace(
        agent,
        task=replace(agent.task, steps=20_000),
        denoiser=replace(agent.denoiser, width=32, layers=1),
        data=replace(agent.data, phrases=60, route_goals=32),
        training=make_config(max_steps=STEPS, checkpoint_every=2, log_every=3, batch_size=8),
    )
    train_agent(config, run_dir, resume=resume, quiet=True)


Kind = Callable[[Path, bool], None]
KINDS: dict[str, Kind] = {kind.__name__: kind for kind in (toy, imitation, lora, pointmaze)}


def die_at(call: int) -> None:
    """From now on, this process kills itself at its `call`-th call that touches the disk."""
    calls = 0

    def counted(function):
        def wrapper(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return wrapper

    for name in ("fsync", "replace", "rmdir", "unlink", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    checkpoints.save_file = counted(checkpoints.save_file)
    opened = builtins.open
    writing = counted(opened)

    def open_counted(file, mode="r", *arguments, **keywords):
        reads = set(mode) <= set("rbt")
        return (opened if reads else writing)(file, mode, *arguments, **keywords)

    builtins.open = open_counted


def attempt(kind: Kind, run_dir: Path, dies_at: int = 0, kill_after: float = 0.0) -> bool:
    """One process that trains from wherever `run_dir` is; whether it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            warnings.simplefilter("error", UserWarning)  # a damaged checkpoint would warn
            if dies_at:
                die_at(dies_at)
            kind(run_dir, (run_dir / "run.json").exists())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        sys.exit(f"{kind.__name__} in {run_dir} failed: exit code {code}")
    return code != 0


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same checkpoint, bit for bit, and the same metrics."""
    first, second = latest_checkpoint(one), latest_checkpoint(other)
    if first is None or second is None or (first.step, first.state) != (second.step, second.state):
        return False
    equal = all(
        torch.equal(tensor, second.tensors[group][name])
        for group, tensors in first.tensors.items()
        for name, tensor in tensors.items()
    )
    lines = [
        [{k: v for k, v in line.items() if k != "steps_per_second"} for line in read_metrics(path)]
        for path in (one / "metrics.jsonl", other / "metrics.jsonl")
    ]
    return equal and lines[0] == lines[1]


def trials(kind: Kind, folder: Path, kills: int, chance: random.Random) -> list[dict]:
    """`kills` kills of one kind: half at random moments, half inside writes; runs are repeated."""
    whole = folder / "whole"
    began = time.monotonic()
    attempt(kind, whole)
    seconds = time.monotonic() - began
    rows = []
    for where in ("random", "write"):
        row = {"training": kind.__name__, "where": PLACES[where]}
        row |= {"killed": 0, "runs": 0, "bit_identical": 0, "lost": 0}
        while row["killed"] < kills // 2:
            run_dir = folder / f"{where}-{row['runs']}"
            most = min(row["killed"] + MOST_KILLS_A_RUN, kills // 2)
            unfinished = True
            while unfinished:
                step, spared = _step(run_dir), row["killed"] >= most
                # Some 30 calls a save, and some 10 before the first.
                dies_at = chance.randint(1, 80) if where == "write" and not spared else 0
                after = chance.uniform(0.1, 0.9) * seconds if where == "random" else 0.0
                unfinished = attempt(kind, run_dir, dies_at, 0.0 if spared else after)
                row["killed"] += unfinished
                row["lost"] += _step(run_dir) < step
            row["runs"] += 1
            row["bit_identical"] += same(whole, run_dir)
        rows.append(row)
    return rows


def _step(run_dir: Path) -> int:
    """Step of the newest checkpoint that is whole."""
    found = latest_checkpoint(run_dir)
    return 0 if found is None else found.step


def main(folder: Path, kills: int, names: list[str], output: Path | None) -> None:
    torch.set_num_threads(1)
    rows = []
    for name in names:
        rows += trials(KINDS[name], folder / name, kills, random.Random(0))
        print(json.dumps(rows[-2:]), flush=True)
    if output is not None:
        from lmdiff.evaluation.results import write_result

        write_result(output, "scripts/crash", [0], rows, columns=COLUMNS)
    if any(row["lost"] or row["bit_identical"] < row["runs"] for row in rows):
        sys.exit("A killed run lost steps, or did not end as an uninterrupted one.")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        sys.argv[4:] or list(KINDS),
        Path(sys.argv[3]) if len(sys.argv) > 3 and sys.argv[3] != "-" else None,
    )
