"""Confidence intervals against published values and closed forms."""

import json

import numpy as np
import pytest

from lmdiff.evaluation.intervals import Interval, bootstrap_mean, wilson


def closed_form(p: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson (1927), solved for the rate."""
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (97, 100), (1, 2), (243, 250)])
def test_wilson_is_the_closed_form(successes: int, n: int) -> None:
    interval = wilson(successes, n)
    assert interval.mean == successes / n
    assert interval[1:] == pytest.approx(closed_form(successes / n, n), abs=1e-6)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1


def test_wilson_takes_numpy_counts() -> None:
    assert wilson(np.int64(3), np.int64(4)) == wilson(3, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_rate(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="no rate"):
        wilson(successes, n)


def test_bootstrap_agrees_with_the_normal_interval_on_many_values() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    interval = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert interval.mean == values.mean()
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_is_a_function_of_values_and_seed() -> None:
    values = np.random.default_rng(0).exponential(size=30)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0, 5.0]])
def test_bootstrap_of_equal_values_is_their_value(values: list[float]) -> None:
    assert bootstrap_mean(values) == Interval(5.0, 5.0, 5.0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf"), 1.0]])
def test_bootstrap_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean(values)


def test_an_interval_becomes_json_and_text() -> None:
    interval = Interval(0.972, 0.9414, 0.988)
    assert json.loads(json.dumps(interval.to_dict())) == {
        "mean": 0.972,
        "low": 0.9414,
        "high": 0.988,
    }
    assert str(interval) == "0.972 (0.941-0.988)"
