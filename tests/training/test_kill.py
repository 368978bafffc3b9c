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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
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
    for row in rows:
        assert row["killed"] >= kills // 2
        assert row["bit_identical"] == row["runs"] > 0
        assert row["lost"] == 0


def test_killed_runs_end_as_uninterrupted_ones(tmp_path):
    rows = run(tmp_path, 24, "toy")
    assert [row["where"] for row in rows] == ["at random moments", "while it writes"]
    check(rows, 24)


def test_killed_agents_end_as_uninterrupted_ones(tmp_path):
    """The planner and its goal prior."""
    check(run(tmp_path, 4, "imitation"), 4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_kind_of_training_survives(tmp_path):
    pytest.importorskip("ogbench")
    check(run(tmp_path, 8, "lora", "pointmaze"), 8)
