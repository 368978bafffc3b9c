"""Training windows: `horizon` steps of (observation, action chunk, progress), and their goals.

The goal of a window is a state that it reaches (hindsight), at a distance that varies from none to
the whole window; after the goal, the window rests there. Windows follow stitched routes
(lmdiff/data/routes.py) or, without them, the recordings. A batch is a pure function of
(seed, rank, step), so an interrupted training goes on exactly where it stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from lmdiff.config import AgentConfig
from lmdiff.data.episodes import Episodes
from lmdiff.data.hindsight import HindsightPhrases
from lmdiff.data.routes import Routes, cut_hops, shortest_routes
from lmdiff.errors import UserError
from lmdiff.goals.grammar import PlaceKey

_WORDS_ALONE = 0.5  # share of the goals in words whose state is not told
_WAYS_OUT = 64  # recorded states near a start, of which the best one's hop is the first
_WHOLE_ROUTES = 0.75  # share of the state goals that go the whole way to a route's end


class Batch(NamedTuple):
    """B windows in the data's units."""

    observation: Tensor
    """[B, horizon, observation]"""
    action: Tensor
    """[B, horizon, stride * action]: what is done from each observation until the next."""
    signal: Tensor
    """[B, horizon, 1]: progress, that is minus the environment steps that remain to the goal."""
    goal_state: Tensor
    """[B, observation]"""
    state_given: Tensor
    """[B] bool: whether the goal's state is told."""
    phrases: list[str | None]
    """[B] the goal in words, or None."""

    @property
    def window(self) -> Tensor:
        """All groups side by side: [B, horizon, observation + action + signal]."""
        return torch.cat([self.observation, self.action, self.signal], -1)


@dataclass(frozen=True)
class _Paths:
    nodes: np.ndarray
    """[B, horizon] recorded states along the way."""
    states: np.ndarray
    """[B, horizon, observation] theirs, and the goal again and again once it is reached."""
    goals: np.ndarray
    """[B, observation]"""
    length: np.ndarray
    """[B] hops to the goal; `horizon` where the window ends before it."""
    last_steps: np.ndarray
    """[B] environment steps of the last hop."""
    remaining: np.ndarray
    """[B, horizon] environment steps to the goal."""


class WindowSampler:
    """Draws batches of windows from the episodes of one task.

    Args:
        config: the agent's config.
        episodes: recorded data.
        phrases: words for places; None for goals that are states only.
    """

    def __init__(self, config: AgentConfig, episodes: Episodes, phrases: HindsightPhrases | None):
        seed = config.training.seed
        self.horizon = config.denoiser.horizon
        self.hops = cut_hops(episodes, config.denoiser.stride, seed)
        self.splice_radius = config.data.splice_radius
        self.phrases = phrases
        self.words_fraction = config.data.words_fraction if phrases else 0.0
        count = len(self.hops.states)
        self.goals = np.arange(count)
        self._left = np.flatnonzero(self.hops.followed)  # states from where the recording goes on
        self.routes: Routes | None = None
        if config.data.routes:
            rng = np.random.default_rng([seed, 1])
            ends = self.hops.moving + 1
            self.goals = rng.choice(ends, min(config.data.route_goals, len(ends)), replace=False)
            self.routes = shortest_routes(self.hops, self.goals, self.splice_radius)
            self._useful = np.union1d(self.hops.moving, self.goals)
            self._useful_tree = KDTree(self.hops.states[self._useful])
            # A list keeps the neighbours' axis where there is only one.
            self._ways_out: Any = list(range(1, min(_WAYS_OUT, len(self._useful)) + 1))
        # Hops recorded before each state, for windows without routes.
        starts = np.flatnonzero(np.concatenate([[True], ~self.hops.followed[:-1]]))
        lead = starts[np.searchsorted(starts, np.arange(count), side="right") - 1]
        self._recorded_before = np.arange(count) - lead
        # Goals (indices into `self.goals`) that each place's phrases describe.
        described = phrases.index(self.hops.states[self.goals]) if phrases else {}
        self._goals_at = {place: goals for place, goals in described.items() if len(goals)}
        if self.words_fraction > 0 and not self._goals_at:
            raise UserError(
                "No phrase describes any goal state in the data: raise data.route_goals or "
                "task.steps, or set data.words_fraction to 0."
            )

    def batch(self, seed: int, rank: int, step: int, size: int) -> Batch:
        """Batch number `step` of process `rank`: always the same one."""
        rng = np.random.default_rng([seed, rank, step])
        places = [
            self._draw_place(rng) if words else None
            for words in rng.random(size) < self.words_fraction
        ]
        # A place is drawn before its states, so corners are said as often as halves of the maze.
        goals = np.array(
            [
                rng.integers(len(self.goals))
                if place is None
                else rng.choice(self._goals_at[place])
                for place in places
            ]
        )
        draw = self._along_recordings if self.routes is None else self._along_routes
        in_words = np.array([place is not None for place in places])
        return self._assemble(rng, draw(rng, goals, in_words), places)

    def _draw_place(self, rng: np.random.Generator) -> PlaceKey:
        assert self.phrases is not None
        while (place := self.phrases.draw_place(rng)) not in self._goals_at:
            pass  # too few goal states were drawn for this place to have one
        return place

    def _along_routes(
        self, rng: np.random.Generator, goals: np.ndarray, in_words: np.ndarray
    ) -> _Paths:
        routes = self.routes
        assert routes is not None
        size, goal_nodes = len(goals), self.goals[goals]
        starts = rng.choice(self._left, size)
        # What was done at the start itself may lead elsewhere, or nowhere: a window sets out as
        # the best of its neighbours did.
        gap, neighbour = self._useful_tree.query(self.hops.states[starts], k=self._ways_out)
        near = self._useful[neighbour]
        cost = routes.steps_to_goal[goals[:, None], near] + gap * self.hops.splice_cost
        cost[gap > np.maximum(self.splice_radius, gap[:, :1])] = np.inf
        best = np.arange(size), cost.argmin(1)
        nodes = np.empty((size, self.horizon), np.int64)
        nodes[:, 0] = np.where(np.isfinite(cost[best]), near[best], goal_nodes)
        for i in range(1, self.horizon):
            nodes[:, i] = routes.following[goals, nodes[:, i - 1]]
        remaining = routes.steps_to_goal[goals[:, None], nodes]
        reached = nodes == goal_nodes[:, None]
        length = np.where(reached.any(1), reached.argmax(1), self.horizon)
        # A part of a shortest route is one too: cut some, so that every state serves as a goal.
        cut = ~in_words & (rng.random(size) > _WHOLE_ROUTES)
        shorter = rng.integers(0, np.minimum(length, self.horizon - 1) + 1)
        length = np.where(cut, shorter, length)
        last = nodes[np.arange(size), np.minimum(length, self.horizon - 1)]
        remaining = remaining - np.where(cut, routes.steps_to_goal[goals, last], 0.0)[:, None]
        ends = np.where(cut, last, goal_nodes)
        return self._stop(rng, nodes, starts, ends, length, remaining, cut)

    def _along_recordings(
        self, rng: np.random.Generator, goals: np.ndarray, in_words: np.ndarray
    ) -> _Paths:
        goal_nodes = self.goals[goals]
        longest = np.minimum(self._recorded_before[goal_nodes], self.horizon - 1)
        length = rng.integers(0, longest + 1)
        hops = np.arange(self.horizon)
        nodes = (goal_nodes - length)[:, None] + np.minimum(hops, length[:, None])
        remaining = np.maximum(length[:, None] - hops, 0.0) * self.hops.stride
        return self._stop(rng, nodes, nodes[:, 0], goal_nodes, length, remaining, ~in_words)

    def _stop(
        self,
        rng: np.random.Generator,
        nodes: np.ndarray,
        origins: np.ndarray,
        goal_nodes: np.ndarray,
        length: np.ndarray,
        remaining: np.ndarray,
        anywhere: np.ndarray,
    ) -> _Paths:
        """Rest at the goal; where `anywhere` [B], it may lie within the last hop.

        Without such goals, nothing nearer than a whole hop could be reached on purpose.
        """
        size, stride = len(nodes), self.hops.stride
        after = np.arange(self.horizon) >= length[:, None]
        part = anywhere & (length > 0) & (length < self.horizon)
        steps = np.where(part, rng.integers(1, stride + 1, size), stride)
        before = nodes[np.arange(size), np.maximum(length, 1) - 1]
        goals = self.hops.states[goal_nodes]
        goals = np.where(part[:, None], self.hops.passed[before, steps - 1], goals)
        states = self.hops.states[nodes]
        states[:, 0] = self.hops.states[origins]
        return _Paths(
            nodes=nodes,
            states=np.where(after[..., None], goals[:, None], states),
            goals=goals,
            length=length,
            last_steps=steps,
            remaining=np.where(after, 0.0, remaining - (stride - steps)[:, None]),
        )

    def _assemble(
        self,
        rng: np.random.Generator,
        paths: _Paths,
        places: Sequence[PlaceKey | None],
    ) -> Batch:
        hop = np.arange(self.horizon)
        last_hop = hop == paths.length[:, None] - 1
        # Actions of each hop that are done: all, some of the last one's, none at rest.
        done = np.where(last_hop, paths.last_steps[:, None], self.hops.stride)
        done = np.where(hop >= paths.length[:, None], 0, done)
        undone = np.arange(self.hops.stride) >= done[..., None]
        actions = np.where(undone[..., None], 0.0, self.hops.actions[paths.nodes])
        return Batch(
            observation=torch.from_numpy(paths.states),
            action=torch.from_numpy(actions.reshape(*paths.nodes.shape, -1)).float(),
            signal=torch.from_numpy(-paths.remaining[..., None]).float(),
            goal_state=torch.from_numpy(paths.goals),
            state_given=torch.tensor(
                [place is None or rng.random() > _WORDS_ALONE for place in places]
            ),
            phrases=[
                None
                if place is None or self.phrases is None
                else self.phrases.draw_text(place, rng)
                for place in places
            ],
        )
