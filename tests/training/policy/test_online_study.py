import json

import pytest

from lmdiff.training.policy.online_study import curve, worst


def test_the_worst_stretch_on_the_way():
    rounds = [(100, 0.5), (200, 0.1), (300, 0.3), (400, 0.9)]
    assert worst(rounds, 100) == pytest.approx(0.1)
    assert worst(rounds, 200) == pytest.approx(0.2)
    assert worst(rounds, 150) == pytest.approx(0.2)  # whole rounds only
    assert worst(rounds, 10_000) == pytest.approx(0.45)
    # Long rounds weigh more.
    assert worst([(100, 1.0), (400, 0.2)], 400) == pytest.approx(0.4)


def test_a_run_s_curve_is_read(tmp_path):
    lines = [
        {"step": 1, "environment_steps": 30, "rollout/success": 0.5},
        {"step": 2, "environment_steps": 30, "rollout/success": None},
        {"step": 3, "environment_steps": 70, "rollout/success": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert curve(tmp_path) == [(30, 0.5), (70, 1.0)]
