"""kill -9 at random moments and in the middle of writes: nothing is lost, and no bit differs.

A few trials, with `crash_trials.py`; `scripts/crash` does many, with whole agents too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = str(Path(__file__).with_name("crash_trials.py"))
ROOT = Path(__file__).resolve().parents[2]


def run(folder, kills, *kinds):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, PROGRAM, str(folder), str(kills), "-", *kinds],
        capture_output=True,
        text=True,
        timeout=1500,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [row for line in done.stdout.splitlines() for row in json.loads(line)]


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork")


def check(rows, kills):
    """Of each kind: killed at random, killed while it writes, and its checkpoint damaged."""
    for at_random, in_writes, damaged in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert at_random["where"] == "at random moments"
        assert in_writes["where"] == "while it writes"
        for row in (at_random, in_writes):
            assert row["killed"] >= kills // 2
            assert row["bit_identical"] == row["runs"] > 0
            assert row["lost"] == 0
        assert damaged["tried"] == 3 * damaged["files"] >= 15
        assert damaged["named"] == damaged["recovered"] == damaged["tried"]


def test_killed_runs_end_as_uninterrupted_ones(tmp_path):
    check(run(tmp_path, 24, "toy"), 24)


def test_killed_agents_end_as_uninterrupted_ones(tmp_path):
    """A planner with its goal prior; text by rewards."""
    check(run(tmp_path, 4, "imitation", "text_rl"), 4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_kind_of_training_survives(tmp_path):
    pytest.importorskip("ogbench")
    check(run(tmp_path, 8, "lora", "pointmaze", "policy", "critic", "online", "sft"), 8)
