"""Sharded training (FSDP2) on two real gloo ranks equals whole training on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = str(Path(__file__).with_name("fsdp_program.py"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = ("report", "sharded-0", "sharded-1")
    return [json.loads((folder / f"{name}.json").read_text()) for name in names]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork")
@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_two_ranks_with_a_part_each_end_where_one_with_the_whole_does(reports, adaptation):
    """Through a checkpoint in the middle, which the ranks gather and share out again."""
    report, *ranks = reports
    for rank in ranks:
        assert rank[adaptation]["sharded"] == rank[adaptation]["parameters"] > 0
        assert rank[adaptation]["blocks"] == 1  # of a BERT with one layer
    assert report[adaptation]["moved"] > 1e-3
    assert report[adaptation]["gap"] < 1e-5
    assert report[adaptation]["gone_on_alone"] < 1e-5
    assert report[adaptation]["optimizer"] < 1e-5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork")
def test_evaluations_on_the_way_are_refused(reports):
    assert all("evaluate-every 0" in rank["refused"] for rank in reports[1:])
