"""kill -9 at random moments: the run that comes out is the one that was never killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmdiff.training.checkpoints import latest_checkpoint
from lmdiff.training.metrics import read_metrics

PROGRAM = str(Path(__file__).with_name("training_toy.py"))


def start(run_dir, kills):
    command = [sys.executable, PROGRAM, str(run_dir), str(kills), "12"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and SIGKILL")
def test_killed_runs_end_as_uninterrupted_ones(tmp_path):
    reports = {}
    for name, kills in (("cut", 40), ("whole", 0)):
        process = start(tmp_path / name, kills)
        output, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        reports[name] = json.loads(output.splitlines()[-1])
    assert reports["whole"]["killed"] == 0
    assert reports["cut"]["killed"] >= 3
    first, second = latest_checkpoint(tmp_path / "whole"), latest_checkpoint(tmp_path / "cut")
    assert first is not None
    assert second is not None
    assert first.step == second.step == 200
    assert first.state == second.state
    for group, tensors in first.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second.tensors[group][name]), f"{group} {name}"
    steps = [line["step"] for line in read_metrics(tmp_path / "cut" / "metrics.jsonl")]
    assert steps == [*range(3, 200, 3), 200]
