import numpy as np
import pytest

from lmdiff.errors import UserError
from lmdiff.tasks.world import World
from lmdiff.tasks.worlds import make_world


class Line(World):
    """A point on a line that is asked to go left or right."""

    family, swappable = "line", True

    def __init__(self):
        super().__init__("line", ("left", "right"), 1, 1, episode_steps=5)
        self.x = 0.0

    def start(self, seed, goal):
        self.x = 0.1 * (seed % 3)
        return np.array([self.x])

    def advance(self, action):
        self.x += float(action[0])
        return np.array([self.x])

    def achieved(self, goal):
        return self.x < -1.5 if goal == "left" else self.x > 1.5

    def expert_action(self):
        return np.array([-1.0 if self.goal == "left" else 1.0], np.float32)


def test_an_expert_achieves_what_is_asked():
    world = Line()
    observation, info = world.reset(seed=4, options={"goal": "left"})
    assert observation.dtype == np.float32
    assert info == {"goal": "left", "success": False}
    rewards = []
    for _ in range(5):
        _, reward, terminated, truncated, info = world.step(world.expert_action())
        rewards.append(reward)
        if terminated or truncated:
            break
    assert rewards == [0.0, 1.0]
    assert terminated
    assert info["success"]
    assert not truncated


def test_time_is_up():
    world = Line()
    world.reset(seed=0, options={"goal": "right"})
    ends = [world.step(np.zeros(1))[3] for _ in range(5)]
    assert ends == [False] * 4 + [True]


def test_actions_are_clipped():
    world = Line()
    world.reset(seed=0, options={"goal": "right"})
    assert world.step(np.array([7.0]))[0] == 1.0


def test_a_goal_is_drawn_by_the_seed():
    goals = [Line().reset(seed=seed)[1]["goal"] for seed in range(20)]
    assert goals == [Line().reset(seed=seed)[1]["goal"] for seed in range(20)]
    assert set(goals) == {"left", "right"}


def test_bad_goals_observations_and_names_are_told():
    world = Line()
    with pytest.raises(UserError, match="left, right"):
        world.reset(seed=0, options={"goal": "up"})
    with pytest.raises(UserError, match="No world 'moon'"):
        make_world("moon")
