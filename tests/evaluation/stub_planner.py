"""A planner without any network that knows the maze's map: roll-outs can be tested exactly."""

import itertools
from types import SimpleNamespace

import numpy as np
import torch

from lmdiff.denoisers.contract import Condition
from lmdiff.errors import GoalNotUnderstood
from lmdiff.goals.grammar import load_grammar
from lmdiff.tasks.pointmaze import PointMaze

STRIDE, HORIZON = 4, 12
SPACING = 0.2 * STRIDE  # the farthest that `STRIDE` actions of unit length go


class StubPlanner:
    """Plans along the shortest way through cell centres, a stride's walk between waypoints.

    Args:
        task: whose map it knows.
        claims_early: plans say that they arrive at this waypoint, wherever the goal is.
    """

    device = torch.device("cpu")
    known_goals = None
    config = {"stride": STRIDE, "hop_length": SPACING}  # noqa: RUF012

    def __init__(self, task: PointMaze, claims_early: int | None = None):
        self.task, self.claims_early = task, claims_early
        self.calls: list[int] = []
        self.grammar = load_grammar("maze")

    def understand(self, goal: str) -> None:
        if self.grammar.denote(goal, self.task.places) is None:
            raise GoalNotUnderstood("no", ["a goal"])

    def encode_goal(self, goal=None, *, goal_state=None, generator=None) -> Condition:
        if goal is not None:
            goal_state = [self._place(text) for text in goal]
        return Condition(state=torch.tensor(np.stack(goal_state), dtype=torch.float64))

    def _place(self, text: str) -> np.ndarray:
        denoted = self.grammar.denote(text, self.task.places)
        if denoted is None or not denoted[1]:
            return np.full(2, np.nan)  # it stays where it is
        return self.task.to_state(min(denoted[1]))

    def __call__(self, condition: Condition, *, observation, **_) -> SimpleNamespace:
        assert condition.state is not None
        assert len(observation) == len(condition.state)
        self.calls.append(len(observation))
        plans = [
            self._plan(*pair) for pair in zip(observation, condition.state.numpy(), strict=True)
        ]
        return SimpleNamespace(
            observations=np.stack([waypoints for waypoints, _ in plans]),
            arrival=np.array([arrival for _, arrival in plans]),
            goal_states=condition.state.numpy(),
            gap=None,
        )

    def _plan(self, start: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, int]:
        way = [start, *self._corners(start, goal)]
        waypoints, left = [start], SPACING
        for begin, end in itertools.pairwise(way):
            here, length = 0.0, float(np.linalg.norm(end - begin))
            while length - here >= left:
                here += left
                waypoints.append(begin + (end - begin) * here / length)
                left = SPACING
            left -= length - here
        waypoints.append(way[-1])
        arrival = min(len(waypoints) - 1, HORIZON)
        if len(way) == 1:
            arrival = 0
        if self.claims_early is not None:
            arrival = min(arrival, self.claims_early)
        waypoints += [way[-1]] * HORIZON
        return np.stack(waypoints[:HORIZON]), arrival

    def _corners(self, start: np.ndarray, goal: np.ndarray) -> list[np.ndarray]:
        if np.isnan(goal).any():
            return []
        cell, last = self.task.cell_of(start), self.task.cell_of(goal)
        if cell == last:
            return [goal]
        distance = self.task.distances(last)
        corners = [self.task.to_state(cell)]
        while cell != last:
            row, column = cell
            beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            cell = min((c for c in beside if c in distance), key=distance.__getitem__)
            corners.append(self.task.to_state(cell))
        return [*corners, goal]

    def act(self, observations: np.ndarray, waypoints: np.ndarray) -> np.ndarray:
        assert waypoints.shape == (len(observations), HORIZON - 1, 2)
        action = np.clip((waypoints[:, 0] - observations) / SPACING, -1, 1)
        return np.repeat(action[:, None], STRIDE, 1)

    def act_towards(self, observations: np.ndarray, condition: Condition) -> np.ndarray:
        assert condition.state is not None
        action = np.clip((condition.state.numpy() - observations) / SPACING, -1, 1)
        return np.repeat(action[:, None], STRIDE, 1)
