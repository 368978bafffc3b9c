"""Routes: the shortest way through recorded pieces, joined only where they nearly touch."""

import numpy as np
import pytest

from lmdiff.data.episodes import Episodes
from lmdiff.data.routes import Hops, cut_hops, shortest_routes
from lmdiff.errors import UserError


def _hops(*pieces: np.ndarray) -> Hops:
    """Pieces [T, 2] as hops of one step; actions say which hop they are of."""
    states = np.concatenate(pieces).astype(np.float32)
    followed = np.concatenate([np.arange(len(piece)) < len(piece) - 1 for piece in pieces])
    return Hops(
        states=states,
        actions=np.arange(len(states), dtype=np.float32).reshape(-1, 1, 1),
        passed=np.concatenate([states[1:], states[-1:]])[:, None],
        followed=followed,
        stride=1,
    )


def _way(following: np.ndarray, start: int, goal: int) -> list[int]:
    way = [start]
    while way[-1] != goal:
        way.append(int(following[way[-1]]))
        assert len(way) <= len(following)
    return way


# States 0-20: slowly from (0, 0) to (20, 0). States 21-27: three times as fast, from (2, 0.25).
SLOW = np.stack([np.arange(21.0), np.zeros(21)], 1)
FAST = np.stack([np.arange(2.0, 21.0, 3.0), np.full(7, 0.25)], 1)


def test_the_shortest_route_takes_the_faster_piece() -> None:
    routes = shortest_routes(_hops(SLOW, FAST), np.array([20]), splice_radius=0.3)
    # Two slow hops, of which the second ends beside the fast piece; six fast ones; and off again.
    assert _way(routes.following[0], 0, 20) == [0, 1, 21, 22, 23, 24, 25, 26, 20]
    # 8 hops and two gaps of 0.25, each at twice the time of the usual speed (1 a step).
    assert routes.steps_to_goal[0, 0] == pytest.approx(8 + 2 * 2 * 0.25)
    # Between the fast piece's states it is better to walk on to where it is near.
    assert _way(routes.following[0], 3, 20)[:3] == [3, 4, 22]


def test_out_of_reach_nothing_is_joined() -> None:
    routes = shortest_routes(_hops(SLOW, FAST), np.array([20]), splice_radius=0.2)
    assert _way(routes.following[0], 0, 20) == list(range(21))
    assert routes.steps_to_goal[0, :21].tolist() == list(range(20, -1, -1))
    assert np.isinf(routes.steps_to_goal[0, 21:]).all()
    assert (routes.following[0, 21:] < 0).all()


def test_a_long_gap_costs_more_than_the_detour() -> None:
    """A shortcut across a gap of 2 saves three hops and costs four."""
    around = np.array([[0, 0], [1, 0], [1, 1], [1, 2], [1, 3], [0, 3]], float)
    near = np.array([[0.0, 2.001], [0.0, 3.001]])
    routes = shortest_routes(_hops(around, near), np.array([5]), splice_radius=3.0)
    assert _way(routes.following[0], 0, 5) == [0, 1, 2, 3, 4, 5]
    assert routes.steps_to_goal[0, 0] == pytest.approx(5)


def test_the_end_of_a_recording_leads_nowhere_by_itself() -> None:
    """A splice starts where a hop ends: standing at the last state, there is no hop to do."""
    first, second = np.array([[0.0, 0], [1, 0]]), np.array([[1.1, 0.0], [2, 0]])
    routes = shortest_routes(_hops(first, second), np.array([3]), splice_radius=0.2)
    assert _way(routes.following[0], 0, 3) == [0, 2, 3]
    assert np.isinf(routes.steps_to_goal[0, 1])


def test_rest_is_no_part_of_a_route_nor_of_the_speed() -> None:
    """Two recordings rest, for most of their time, where one ends and the other begins."""
    first = np.stack([[0.0, 1, 2] + [2 + 0.001 * (i % 7) for i in range(40)], np.zeros(43)], 1)
    second = np.stack([[2.2 + 0.001 * (i % 5) for i in range(40)] + [3.2, 4.2], np.zeros(42)], 1)
    hops = _hops(first, second)
    assert hops.moving.tolist() == [0, 1, 82, 83]
    assert hops.speed == pytest.approx(1.0, abs=0.01)
    routes = shortest_routes(hops, np.array([84]), splice_radius=0.3)
    assert _way(routes.following[0], 0, 84) == [0, 1, 82, 83, 84]
    assert routes.steps_to_goal[0, 0] == pytest.approx(4 + 2 * 0.204, abs=0.01)


@pytest.mark.parametrize("radius", [0.5, 0.8])
def test_routes_in_real_data_are_made_of_recorded_hops(recorded: Episodes, radius: float) -> None:
    hops = cut_hops(recorded, stride=16, seed=0)
    goals = hops.moving[[5, 400, 900, 1400]] + 1
    routes = shortest_routes(hops, goals, radius)
    joined = 0
    for row, goal in enumerate(goals):
        following, steps = routes.following[row], routes.steps_to_goal[row]
        assert following[goal] == goal
        assert steps[goal] == 0
        on_way = np.flatnonzero(np.isfinite(steps) & (np.arange(len(steps)) != goal))
        off_way = np.flatnonzero(~np.isfinite(steps))
        assert len(on_way) > 1000
        assert (following[off_way] < 0).all()
        # Each hop was done in the data, and what follows is where it led, or near that.
        assert hops.followed[on_way].all()
        ended = hops.states[on_way + 1]
        gap = np.linalg.norm(hops.states[following[on_way]] - ended, axis=1)
        assert gap.max() <= radius + 1e-6
        splice = 2 * gap / hops.speed
        cost = steps[on_way] - steps[following[on_way]]
        np.testing.assert_allclose(cost, hops.stride + splice, rtol=1e-4, atol=1e-3)
        assert (cost > 0).all()
        # No way is longer than what was recorded.
        recorded_on = on_way[np.isfinite(steps[on_way + 1])]
        assert (steps[recorded_on] <= hops.stride + steps[recorded_on + 1] + 1e-3).all()
        joined += int((gap > 0).sum())
    assert joined > 1000


def test_hops_are_the_recording(line: Episodes) -> None:
    hops = cut_hops(line, stride=4, seed=0)
    assert hops.speed == pytest.approx(1.0)
    starts = set()
    for n in np.flatnonzero(hops.followed):
        x = hops.states[n, 0]
        starts.add(int(x))
        np.testing.assert_array_equal(hops.states[n + 1], hops.passed[n, -1])
        np.testing.assert_array_equal(hops.passed[n, :, 0], x + np.arange(1, 5))
        np.testing.assert_allclose(hops.actions[n, :, 1], (x + np.arange(4)) / 100)
    for n in np.flatnonzero(~hops.followed):
        assert not hops.actions[n].any()
        np.testing.assert_array_equal(hops.passed[n], np.repeat(hops.states[n][None], 4, 0))
    # Little data is cut from every quarter of a stride: here, at every state but the last three.
    assert starts == set(range(37))


def test_hops_are_limited_and_seeded(recorded: Episodes) -> None:
    few = cut_hops(recorded, stride=16, seed=0, limit=200)
    assert 200 <= len(few.states) < 220
    again = cut_hops(recorded, stride=16, seed=0, limit=200)
    np.testing.assert_array_equal(few.states, again.states)
    other = cut_hops(recorded, stride=16, seed=1, limit=200)
    assert not np.array_equal(few.states[:100], other.states[:100])


def test_episodes_shorter_than_a_hop_are_a_users_mistake(line: Episodes) -> None:
    with pytest.raises(UserError, match=r"denoiser\.stride"):
        cut_hops(line, stride=41, seed=0)
