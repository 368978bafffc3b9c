"""What a checkpoint and a second process cost: measured by real, short trainings."""

from pathlib import Path

import pytest

from lmdiff.config import load_control_agent
from lmdiff.evaluation import bench_training
from lmdiff.training.metrics import read_metrics


def test_a_checkpoint_beside_the_steps_between_two() -> None:
    title, columns, (row,) = bench_training.checkpoint_share(("pointmaze-medium-frozen",), 1)
    assert title
    assert set(columns) <= set(row)
    assert row["every"] == 500
    assert row["megabytes"] > 10  # weights, average and two moments of 0.9M parameters
    step, save = row["step_ms"], row["checkpoint_ms"]
    assert step["low"] <= step["mean"] <= step["high"]
    assert row["share"] == pytest.approx(100 * save["mean"] / (500 * step["mean"]), abs=1e-3)


def test_work_says_many_things() -> None:
    """A language model that is trained reads each distinct phrase once: one alone costs nothing."""
    _, batch = bench_training.imitation_work(load_control_agent("pointmaze-medium-frozen"))
    assert batch.goal_states is not None
    assert len(set(batch.goal_states.phrases)) == 64
    assert len({phrase for phrase in batch.windows.phrases if phrase}) > 20


@pytest.mark.slow
def test_two_processes_beside_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_training, "_STEPS", 15)
    one, two = bench_training._turn("sudoku-sft", tmp_path / "turn")
    assert one > 0
    assert two > 0
    for name in ("one", "two"):
        lines = read_metrics(tmp_path / "turn" / name / "metrics.jsonl")
        assert [line["step"] for line in lines] == [5, 10, 15]
