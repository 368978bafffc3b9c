"""The data's expert: seeded, and the published procedure."""

import numpy as np
import pytest

from lmdiff.tasks.pointmaze import PointMaze
from lmdiff.tasks.pointmaze_expert import Expert

MEDIUM = PointMaze("pointmaze-medium")


@pytest.fixture(scope="module")
def expert() -> Expert:
    return Expert(MEDIUM)


def _same(first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dataset", ["navigate", "stitch"])
def test_an_episode_is_a_function_of_seed_and_index(expert: Expert, dataset: str) -> None:
    wanted = expert.episode(dataset, 3, 5)
    expert.episode("stitch", 9, 1)
    np.random.seed(123)
    np.random.uniform(size=17)
    expert.env.step(np.ones(2))
    assert _same(expert.episode(dataset, 3, 5), wanted)
    assert _same(Expert(MEDIUM).episode(dataset, 3, 5), wanted)


def test_other_seeds_and_indices_are_other_episodes(expert: Expert) -> None:
    actions = [expert.episode("stitch", *pair)[1] for pair in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    for index, first in enumerate(actions):
        for second in actions[index + 1 :]:
            assert not np.isclose(first, second).all(1).any()


def test_goals_are_drawn_where_there_is_a_choice(expert: Expert) -> None:
    """Hallways (open on two opposite sides only) are no goals of `navigate`."""
    excluded = set(MEDIUM.free_cells) - set(expert.vertices)
    walls = MEDIUM.maze_map
    for row, column in MEDIUM.free_cells:
        up, down = walls[row - 1, column], walls[row + 1, column]
        left, right = walls[row, column - 1], walls[row, column + 1]
        straight = (up, down, left, right) in [(0, 0, 1, 1), (1, 1, 0, 0)]
        assert ((row, column) in excluded) == straight
    assert excluded == {(3, 3), (4, 5), (5, 1), (5, 6), (6, 2)}


def test_navigate_goals_are_never_hallways(expert: Expert, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    original = expert.env.set_goal

    def set_goal(goal_ij=None, goal_xy=None):
        original(goal_ij=goal_ij, goal_xy=goal_xy)
        asked.append(expert.env.xy_to_ij(expert.env.cur_goal_xy))

    monkeypatch.setattr(expert.env, "set_goal", set_goal)
    for index in range(6):
        expert.episode("navigate", 0, index)
    assert len(set(asked)) > 8
    assert set(asked) <= set(expert.vertices)


def test_stitch_goals_are_four_cells_away(expert: Expert, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = expert.env.reset

    def reset(*arguments, **options):
        asked.append(options["options"]["task_info"])
        return original(*arguments, **options)

    monkeypatch.setattr(expert.env, "reset", reset)
    for index in range(40):
        observations, _ = expert.episode("stitch", 0, index)
        info = asked[-1]
        assert MEDIUM.cell_of(observations[0]) == info["init_ij"]
        assert MEDIUM.distances(info["init_ij"])[info["goal_ij"]] == 4
        # It goes there, and stays.
        end = MEDIUM.to_cells(observations[-20:]) - info["goal_ij"]
        assert np.abs(end).max() < 0.75
    assert len({info["init_ij"] for info in asked}) > 15
    assert len({info["goal_ij"] for info in asked}) > 10


def test_actions_are_the_unit_direction_plus_noise_clipped(
    expert: Expert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the oracle's subgoal: where nothing was clipped, the rest is N(0, 0.5)."""
    residuals, clipped, total = [], 0, 0
    env = expert.env
    goal = {}
    original = env.set_goal

    def set_goal(goal_ij=None, goal_xy=None):
        original(goal_ij=goal_ij, goal_xy=goal_xy)
        goal["xy"] = env.cur_goal_xy

    monkeypatch.setattr(env, "set_goal", set_goal)
    for index in range(25):
        observations, actions = expert.episode("stitch", 1, index)
        assert observations.dtype == actions.dtype == np.float32
        assert observations.shape == (202, 2)
        assert actions.shape == (201, 2)
        assert np.abs(actions).max() <= 1.0
        for position, action in zip(observations[:-1], actions, strict=True):
            subgoal, _ = env.get_oracle_subgoal(position, goal["xy"])
            direction = subgoal - position
            distance = np.linalg.norm(direction)
            if distance < 0.05:
                continue
            direction /= distance
            total += 2
            clipped += int((np.abs(action) >= 1).sum())
            # Directions below 0.1: clipping is at 1.8 standard deviations or more, hence rare.
            residuals += [a - d for a, d in zip(action, direction, strict=True) if abs(d) < 0.1]
    noise = np.array(residuals)
    assert len(noise) > 500
    unclipped = noise[np.abs(noise) < 0.85]
    assert abs(np.mean(unclipped)) < 4 * 0.5 / len(unclipped) ** 0.5
    # The share within half a unit (one standard deviation) does not feel the clipping.
    share = (np.abs(noise) < 0.5).mean()
    assert abs(share - 0.683) < 4 * (0.683 * 0.317 / len(noise)) ** 0.5
    assert 0.1 < clipped / total < 0.5


def test_observations_follow_from_actions(expert: Expert) -> None:
    """A step moves by 0.2 times the action, wherever no wall is near."""
    observations, actions = expert.episode("navigate", 2, 0)
    cells = MEDIUM.to_cells(observations)
    inside = (np.abs(cells - np.round(cells)) < 0.2).all(1)  # 0.3 cells from any wall
    free = inside[:-1] & inside[1:]
    moved = observations[1:] - observations[:-1]
    assert free.sum() > 100
    np.testing.assert_allclose(moved[free], 0.2 * actions[free], atol=1e-5)
    for position in observations:
        assert MEDIUM.cell_of(position) in MEDIUM.free_cells
