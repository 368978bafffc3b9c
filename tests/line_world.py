"""A small world for tests: a point on a line that is asked to go left or right."""

import time

import numpy as np

from lmdiff.tasks.world import World


class Line(World):
    """Goals hold beyond -1.5 and 1.5; a step is at most 0.5 long."""

    family, swappable = "line", True

    def __init__(self, name="line"):
        super().__init__(name, ("go left", "go right"), 2, 1, episode_steps=12)
        self.x = 0.0

    def start(self, seed, goal):
        self.x = 0.2 * (seed % 5 - 2)
        return self._seen()

    def advance(self, action):
        self.x += 0.5 * float(action[0])
        return self._seen()

    def achieved(self, goal):
        return self.x < -1.5 if goal == "go left" else self.x > 1.5

    def expert_action(self):
        return np.array([-1.0 if self.goal == "go left" else 1.0], np.float32)

    def holds(self, observations):
        return np.stack([observations[:, 0] < -1.5, observations[:, 0] > 1.5], 1)

    def render(self):
        frame = np.full((40, 60, 3), 255, np.uint8)
        frame[:, int(30 + 10 * np.clip(self.x, -2.5, 2.5))] = 0
        return frame

    def _seen(self):
        return np.array([self.x, 1.0])


def _fail(self, action):
    raise KeyError("joint")


def _hang(self, action):
    time.sleep(60)


FAULTS = {
    "raised KeyError('joint')": _fail,
    "did not return within 0.5 s": _hang,
    "returned an observation of shape (3,), not (2,)": lambda self, action: np.zeros(3),
    "returned an observation that is not finite": lambda self, action: np.array([np.nan, 1.0]),
}
"""What errors say -> what is done in place of a step."""


def break_line(monkeypatch, said):
    """From now on every new `Line` has this fault."""
    monkeypatch.setattr(Line, "advance", FAULTS[said])
    if FAULTS[said] is _hang:
        monkeypatch.setattr(Line, "seconds", 0.5)


SAYINGS = """
ambiguous = ["west"]

[goals."go left"]
train = ["go left", "move to the left", "head for the left end"]
validation = ["walk leftwards", "travel left"]
held_out = ["proceed left"]

[goals."go right"]
train = ["go right", "move to the right", "head for the right end"]
validation = ["walk rightwards", "travel right"]
held_out = ["proceed right"]
"""
