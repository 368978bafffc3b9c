"""FSDP2 on two real gloo ranks: what lmdiff would need of torch to shard text models with LoRA."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = str(Path(__file__).with_name("fsdp_program.py"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork")
def test_sharded_adapters_are_gathered_saved_and_loaded(tmp_path):
    """They end where those of the whole model end on both ranks' data."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [json.loads((tmp_path / f"sharded-{rank}.json").read_text()) for rank in (0, 1)]
    assert all(rank["sharded"] == rank["parameters"] > 0 for rank in ranks)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["names"]
    assert report["unexpected"] == []
    assert report["moved"] > 1e-3
    assert report["gap"] < 1e-5
