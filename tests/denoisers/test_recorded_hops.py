"""Recorded hops: plans move to the data and stay where they are told to."""

import numpy as np
import pytest
import torch

from lmdiff.denoisers.recorded_hops import RecordedHops


@pytest.fixture
def corridor() -> RecordedHops:
    """Hops of one unit, east along y = 0 until x = 4, then north along x = 4."""
    east = np.stack([np.linspace(0, 4, 401), np.zeros(401)], 1)
    north = np.stack([np.full(400, 4.0), np.linspace(0.01, 4, 400)], 1)
    way = np.concatenate([east, north]).astype(np.float32)
    return RecordedHops.of(way[:-100], way[100:], 10_000, seed=0)


def plan(*steps: tuple[float, float]) -> torch.Tensor:
    return torch.tensor([steps], dtype=torch.float32)


NONE = torch.zeros(1, 5, dtype=torch.bool)


def test_a_recorded_way_stays(corridor: RecordedHops) -> None:
    way = plan((2, 0), (3, 0), (4, 0), (4, 1), (4, 2))
    torch.testing.assert_close(corridor.attract(way, NONE, 8), way, atol=0.011, rtol=0)


def test_a_cut_corner_is_walked_round(corridor: RecordedHops) -> None:
    """The straight way from (2.5, 0) to (4, 1.5) is nowhere near the data."""
    ends = torch.tensor([[True, False, False, False, True]])
    cut = plan((2.0, 0.0), (2.7, 0.5), (3.1, 0.9), (3.5, 1.3), (4.0, 2.0))

    def gap(steps: torch.Tensor) -> float:
        x, y = steps[0, 1:-1].T
        return float(torch.minimum(y.abs() + (x - 4).clamp_min(0), (x - 4).abs()).max())

    assert gap(cut) > 0.8
    moved = corridor.attract(cut, ends, 8)
    assert gap(moved) < 0.2
    torch.testing.assert_close(moved[:, [0, 4]], cut[:, [0, 4]], atol=0, rtol=0)


def test_no_time_and_all_fixed_change_nothing(corridor: RecordedHops) -> None:
    far = plan((0, 9), (1, 9), (2, 9), (3, 9), (4, 9))
    assert torch.equal(corridor.attract(far, NONE, 0), far)
    assert torch.equal(corridor.attract(far, ~NONE, 8), far)
    assert torch.equal(corridor.attract(far[:, :1], NONE[:, :1], 8), far[:, :1])
    assert not torch.equal(corridor.attract(far, NONE, 1), far)


def test_a_row_is_the_same_alone_and_in_a_large_batch(corridor: RecordedHops) -> None:
    rows = torch.randn(700, 5, 2, generator=torch.Generator().manual_seed(0)) * 3
    fixed = NONE.expand(700, 5)
    together = corridor.attract(rows, fixed, 3)
    for i in (0, 350, 699):
        alone = corridor.attract(rows[i : i + 1], NONE, 3)
        torch.testing.assert_close(together[i : i + 1], alone)


def test_the_choice_of_hops_is_seeded() -> None:
    states = np.arange(40.0, dtype=np.float32).reshape(20, 2)
    one, same, other = (RecordedHops.of(states[:-1], states[1:], 8, seed) for seed in (0, 0, 1))
    assert torch.equal(one.hops, same.hops)
    assert not torch.equal(one.hops, other.hops)
    assert one.hops.shape == (8, 4)
    assert torch.equal(one.hops[:, 2:] - one.hops[:, :2], torch.full((8, 2), 2.0))
    assert len(RecordedHops.of(states[:-1], states[1:], 99, 0).hops) == 19


def test_it_is_saved_whole(corridor: RecordedHops, tmp_path) -> None:
    corridor.save_pretrained(tmp_path)
    again = RecordedHops.from_pretrained(tmp_path)
    assert torch.equal(again.hops, corridor.hops)


def test_gaps_tell_a_cut_corner_from_a_recorded_way(corridor: RecordedHops) -> None:
    way = plan((2, 0), (3, 0), (4, 0), (4, 1))
    cut = plan((2, 0), (3, 0), (4, 1), (4, 2))
    gaps = corridor.gaps(torch.cat([way, cut]))
    assert gaps.shape == (2, 3)
    assert gaps[0].max() < 0.02
    # From (3, 0) to (4, 1): the nearest hops turn the corner half-way, (3.5, 0) to (4, 0.5).
    assert gaps[1, 0] < 0.02
    assert gaps[1, 1] == pytest.approx(0.5**0.5, abs=0.02)
