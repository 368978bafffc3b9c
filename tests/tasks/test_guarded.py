"""Environments that raise, hang or return nonsense: an error that says so, before harm is done."""

import copy
import time
from typing import Any

import gymnasium
import line_world
import numpy as np
import pytest
from line_world import Line, break_line

from lmdiff.errors import EnvironmentFault, UserError
from lmdiff.tasks.guarded import Guarded


class Faulty(gymnasium.Env):
    """Does what it should, until its third step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, third: Any = None):
        self.third, self.steps = third, 0

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(2), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 3:
            return self.third()
        return np.ones(2), 0.5, False, False, {}


def hang():
    time.sleep(60)


def fail():
    raise KeyError("joint")


FAULTS = {
    "raised KeyError('joint')": fail,
    "did not return within 0.1 s": hang,
    "returned None as a reward": lambda: (np.ones(2), None, False, False, {}),
    "returned nan as a reward": lambda: (np.ones(2), np.nan, False, False, {}),
    "returned an observation of shape (3,), not (2,)": lambda: (np.ones(3), 0, False, False, {}),
    "returned an observation that is not finite": lambda: (
        np.array([0, np.inf]),
        0,
        False,
        False,
        {},
    ),
    "returned tuple, not 5 values": lambda: (np.ones(2), 0, False, {}),
    "returned NoneType, not 5 values": lambda: None,
}


@pytest.mark.parametrize("said", FAULTS)
def test_faults_are_named(said):
    env = Guarded(Faulty(FAULTS[said]), "arm", seconds=0.1)
    for _ in range(2):
        env.reset()
        for _ in range(2):
            observation, reward, *_ = env.step([0.0])
            assert (observation.tolist(), reward) == ([1.0, 1.0], 0.5)
        with pytest.raises(UserError) as raised:
            env.step([0.0])
        message = str(raised.value)
        assert message.startswith(f"The environment arm {said}, at step 3 of an episode.")


def test_faults_of_a_reset_are_named():
    env = Faulty()
    env.reset = lambda **_: (np.zeros(5), {})
    with pytest.raises(UserError, match=r"shape \(5,\), not \(2,\), at a reset"):
        Guarded(env, "arm").reset()


def test_what_is_right_passes_unchanged():

    class Asked(Faulty):
        def reset(self, *, seed=None, options=None):
            asked.update(options or {}, seed=seed)
            return np.zeros(2, np.float32), {"goal": 1}

    asked: dict[str, Any] = {}
    observation, info = Guarded(Asked(), "arm").reset(seed=3, options={"task": 2})
    assert asked == {"task": 2, "seed": 3}
    assert observation.dtype == np.float32
    assert info == {"goal": 1}


@pytest.mark.parametrize("said", line_world.FAULTS)
def test_faults_of_worlds_are_named(monkeypatch, said):
    sound = Line.advance
    break_line(monkeypatch, said)
    world, broken = Line(), Line.advance
    for _ in range(2):  # a world that failed begins anew
        world.reset(seed=0)
        monkeypatch.setattr(Line, "advance", sound)
        for _ in range(2):
            world.step(np.zeros(1))
        monkeypatch.setattr(Line, "advance", broken)
        with pytest.raises(EnvironmentFault) as raised:
            world.step(np.zeros(1))
        assert str(raised.value).startswith(f"The world line {said}, at step 3 of an episode. ")
        assert str(copy.copy(raised.value)) == str(raised.value)  # as between processes


def test_faults_of_a_judge_an_expert_and_a_start_are_named(monkeypatch):
    world = Line()
    world.reset(seed=0)
    monkeypatch.setattr(Line, "achieved", lambda self, goal: np.nan)
    with pytest.raises(EnvironmentFault, match="world line returned nan as a reward, at step 1"):
        world.step(np.zeros(1))
    monkeypatch.setattr(Line, "expert_action", lambda self: np.array([np.nan]))
    with pytest.raises(EnvironmentFault, match="an expert's action that is not finite, at step 1"):
        world.advice()
    monkeypatch.setattr(Line, "expert_action", lambda self: "left")
    with pytest.raises(EnvironmentFault, match="returned 'left' as an expert's action"):
        world.advice()
    monkeypatch.setattr(Line, "start", lambda self, seed, goal: np.zeros(5))
    with pytest.raises(EnvironmentFault, match=r"shape \(5,\), not \(2,\), at a reset"):
        world.reset(seed=0)
