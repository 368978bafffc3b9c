"""kill -9 again and again, as a program: python crash_trials.py FOLDER KILLS RESULTS|- [KIND ...].

Every kind of training is killed at random moments (`random`) and by itself, at each of its calls
that touch the disk (`write`), until it comes to its end; then it is compared, bit for bit, with the
run that nobody killed. After that each file of a newest checkpoint is altered, cut and deleted in
turn: the run must name the damage, and from the checkpoint before come to the same end.

Runs are forked: to import torch for each would take a hundred times as long. This process itself
trains nothing, for autograd does not survive a fork.
"""

import builtins
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
from crash_kinds import KINDS, STEPS, Kind
from safetensors.torch import load_file

from lmdiff.training import checkpoints
from lmdiff.training.checkpoints import latest_checkpoint, list_checkpoints
from lmdiff.training.metrics import read_metrics

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
DAMAGE_COLUMNS = {
    "training": "training",
    "files": "files of a checkpoint",
    "tried": "damaged",
    "named": "named",
    "recovered": "bit-identical ends",
}


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


def attempt(
    kind: Kind,
    run_dir: Path,
    dies_at: int = 0,
    kill_after: float = 0.0,
    damaged: bool = False,
) -> bool:
    """One process that trains from wherever `run_dir` is; whether it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            # Nothing but what was damaged on purpose may be found so.
            found = "ignore" if damaged else "error"
            warnings.filterwarnings(found, "The checkpoint|Resuming", UserWarning)
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
    """Whether two runs ended alike, bit for bit: checkpoint, agent, replay, and metrics."""
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
    files = [
        [*sorted(path.glob("agent/**/*.safetensors")), *sorted(path.glob("replay/*.safetensors"))]
        for path in (one, other)
    ]
    equal &= len(files[0]) == len(files[1])
    for mine, its in zip(*files, strict=False):
        weights, others = load_file(mine), load_file(its)
        equal &= all(torch.equal(weights[name], others[name]) for name in weights)
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


def flip(path: Path) -> None:
    """One bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damages(kind: Kind, folder: Path) -> dict:
    """Every file of the newest checkpoint x {flip, truncate, delete}, in the run that ended."""
    whole = folder / "whole"
    newest = list_checkpoints(whole)[-1][1].relative_to(whole)
    files = sorted(path.name for path in (whole / newest).iterdir())
    row = {"training": kind.__name__, "files": len(files), "tried": 0, "named": 0, "recovered": 0}
    for name in files:
        for harm in (flip, truncate, Path.unlink):
            run_dir = folder / f"damaged-{row['tried']}"
            shutil.copytree(whole, run_dir, ignore=shutil.ignore_patterns("agent"))
            harm(run_dir / newest / name)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = latest_checkpoint(run_dir)
            row["tried"] += 1
            row["named"] += any(f"{run_dir / newest} is damaged" in str(w.message) for w in caught)
            attempt(kind, run_dir, damaged=True)
            row["recovered"] += found is not None and found.step < STEPS and same(whole, run_dir)
    return row


def _step(run_dir: Path) -> int:
    """Step of the newest checkpoint that is whole."""
    found = latest_checkpoint(run_dir)
    return 0 if found is None else found.step


def put(path: Path, kills: int, rows: list[dict], columns: dict[str, str]) -> None:
    """Into a result file, in place of older rows of the same training."""
    from lmdiff.evaluation.results import read_result, write_result

    done = {row["training"] for row in rows}
    kept = read_result(path)["rows"] if path.exists() else []
    rows = [*(row for row in kept if row["training"] not in done), *rows]
    rows.sort(key=lambda row: [*KINDS].index(row["training"]))
    write_result(path, f"scripts/crash {kills}", [0], rows, columns=columns)


def main(folder: Path, kills: int, names: list[str], results: Path | None) -> None:
    torch.set_num_threads(1)
    good = True
    for name in names:
        killed = trials(KINDS[name], folder / name, kills, random.Random(0))
        damaged = damages(KINDS[name], folder / name)
        print(json.dumps([*killed, damaged]), flush=True)
        if results is not None:
            put(results / "crash.json", kills, killed, COLUMNS)
            put(results / "crash-files.json", kills, [damaged], DAMAGE_COLUMNS)
        good &= not any(row["lost"] or row["bit_identical"] < row["runs"] for row in killed)
        good &= damaged["named"] == damaged["recovered"] == damaged["tried"]
    if not good:
        sys.exit("A checkpoint was lost or passed for whole, or a run did not end as it should.")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        sys.argv[4:] or list(KINDS),
        Path(sys.argv[3]) if len(sys.argv) > 3 and sys.argv[3] != "-" else None,
    )
