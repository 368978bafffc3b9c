"""What a stranger's folder can do to whoever loads it: nothing but be refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = str(Path(__file__).with_name("hostile_program.py"))
ROOT = Path(__file__).resolve().parents[1]
# What is merely not looked at: a component that the pipeline does not have, and code that is named
# where the class is fixed.
HARMLESS = {"upwards", "language_model_code"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, PROGRAM, str(tmp_path_factory.mktemp("hostile"))],
        capture_output=True,
        text=True,
        timeout=280,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_of_it_runs(found):
    assert found["marks"] == []
    assert {name: case["ran"] for name, case in found["report"].items() if case["ran"]} == {}
    assert len(found["report"]) > 30


def test_checkpoints_are_refused_by_name(found):
    for name, case in found["report"].items():
        if name.startswith("checkpoint"):
            assert case["raised"] == "CheckpointDamaged", name
            assert "step-00000001" in case["message"], name


def test_agents_are_refused_by_name(found):
    """What the commands load: one line that says which folder, and no traceback."""
    for name, case in found["report"].items():
        kind, attack = name.split()
        if kind == "goal_by_name" and attack != "upwards":
            assert case["raised"] == "UserError", name
            assert "goal_by_name" in case["message"], name


@pytest.mark.parametrize("kind", ["goal", "text"])
def test_pipelines_raise(found, kind):
    for name, case in found["report"].items():
        if name.startswith(f"{kind} ") and name.split()[1] not in HARMLESS:
            assert case["raised"], name
            assert case["raised"] not in ("MemoryError", "AttributeError", "AssertionError"), name
