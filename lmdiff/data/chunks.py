"""Training batches for policies: chunks of recorded actions, what followed, and goals in words.

A batch is a pure function of (seed, shard), so an interrupted training goes on where it stopped.
The reward is success - 1 at each step, or the recording's own; nothing comes after success.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmdiff.data.recordings import Recording
from lmdiff.errors import UserError
from lmdiff.policy_config import ChunkConfig

_NEVER = 2**30  # steps until what does not happen


class ChunkBatch(NamedTuple):
    """B transitions in the data's units. `counted`, `reward`, `discount`: see Transitions."""

    observation: Tensor
    """[B, history, observation]"""
    action: Tensor
    """[B, horizon, action]"""
    counted: Tensor
    reward: Tensor
    discount: Tensor
    next_observation: Tensor
    """[B, history, observation]"""
    phrases: list[str]
    """U goals in words."""
    goal: Tensor
    """[B] which of them is asked for."""


class ChunkSampler:
    """Draws batches from a recording.

    Args:
        recording: what was done.
        goals: keys of the world's goals, by index.
        phrases: sentences for each key.
        config: what is seen and done at once, and which goals are learned from.
        discount: of one step.
        holds: [N + E, goals] which goals hold in which observations, for hindsight; or None.
    """

    def __init__(
        self,
        recording: Recording,
        goals: Sequence[str],
        phrases: Mapping[str, Sequence[str]],
        config: ChunkConfig,
        discount: float = 0.99,
        holds: np.ndarray | None = None,
    ):
        self.recording, self.config, self.discount = recording, config, discount
        self.phrases = [list(phrases[goal]) for goal in goals]
        steps = np.arange(recording.steps)
        episode = recording.episode
        ends = np.cumsum(recording.lengths)
        self._left = ends[episode] - steps  # steps to the end of the episode, this one included
        self._row = steps + episode  # of the observation before each step
        self._past = steps - (ends - recording.lengths)[episode]
        self._until = _steps_until(recording.success, self._left)
        self._until_any: np.ndarray | None = None
        if config.hindsight + config.random_goals > 0:
            if holds is None:
                raise UserError(
                    "chunks.hindsight and chunks.random_goals need a world whose observations "
                    "tell which goals hold; set both to 0."
                )
            if recording.rewards is not None:
                raise UserError(
                    "A dense reward is for the goal that was asked: set chunks.hindsight and "
                    "chunks.random_goals to 0."
                )
            if config.hindsight + config.random_goals > 1:
                raise UserError("chunks.hindsight + chunks.random_goals is more than 1.")
            begins = holds[self._row + 1] & ~holds[self._row]
            self._until_any = np.stack(
                [_steps_until(column, self._left) for column in begins.T], 1
            ).astype(np.int32)

    def batch(self, seed: int, shard: int, size: int) -> ChunkBatch:
        """Batch number `shard`: always the same one."""
        rng = np.random.default_rng([seed, shard])
        steps = rng.choice(self.recording.steps, size)
        goals, until = self.recording.goals[steps], self._until[steps]
        if self._until_any is not None:
            goals, until = self._relabelled(rng, steps, goals, until)
        asked, which = np.unique(goals, return_inverse=True)
        # One sentence a goal and batch: each is encoded and read once.
        texts = [self.phrases[goal] for goal in asked]
        said = [some[rng.integers(len(some))] for some in texts]
        return self._assemble(steps, until, said, which)

    def _relabelled(
        self, rng: np.random.Generator, steps: np.ndarray, goals: np.ndarray, until: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        assert self._until_any is not None
        ahead = self._until_any[steps]
        kind = rng.random(len(steps))
        # Hindsight: any goal that is soon achieved, all alike; a step without one keeps its own.
        soon = ahead < self.config.hindsight_steps
        score = np.where(soon, rng.random(ahead.shape), -1.0)
        later = score.argmax(1)
        hindsight = (kind < self.config.hindsight) & soon.any(1)
        drawn = rng.integers(ahead.shape[1], size=len(steps))
        anything = kind >= 1 - self.config.random_goals
        goals = np.where(hindsight, later, np.where(anything, drawn, goals))
        relabelled = hindsight | anything
        return goals, np.where(relabelled, ahead[np.arange(len(steps)), goals], until)

    def _assemble(
        self, steps: np.ndarray, until: np.ndarray, said: list[str], which: np.ndarray
    ) -> ChunkBatch:
        horizon = self.config.horizon
        ahead = np.arange(horizon)
        left = self._left[steps]
        # Rewards count until success or the end of the recording.
        lived = np.minimum(np.minimum(until + 1, left), horizon)
        counted = ahead < np.minimum(left, horizon)[:, None]
        powers = self.discount**ahead
        achieved = until < lived
        if self.recording.rewards is None:
            rewards = -(powers * (ahead < (lived - achieved)[:, None])).sum(1)
        else:
            following = np.minimum(steps[:, None] + ahead, self.recording.steps - 1)
            gained = self.recording.rewards[following]
            rewards = (powers * (ahead < lived[:, None]) * gained).sum(1)
        action = self.recording.actions[
            np.minimum(steps[:, None] + ahead, steps[:, None] + left[:, None] - 1)
        ]
        last = np.minimum(left, horizon)
        return ChunkBatch(
            observation=self._seen(self._row[steps], self._past[steps]),
            action=torch.from_numpy(action),
            counted=torch.from_numpy(counted),
            reward=torch.from_numpy(rewards.astype(np.float32)),
            discount=torch.from_numpy(
                np.where(achieved, 0.0, self.discount**lived).astype(np.float32)
            ),
            next_observation=self._seen(self._row[steps] + last, self._past[steps] + last),
            phrases=said,
            goal=torch.from_numpy(which),
        )

    def _seen(self, rows: np.ndarray, past: np.ndarray) -> Tensor:
        """[B, history, observation]; before an episode's start its first observation repeats."""
        back = np.arange(self.config.history - 1, -1, -1)
        before = np.minimum(back, past[:, None])
        return torch.from_numpy(self.recording.observations[rows[:, None] - before]).float()


def mixed(batches: Sequence[ChunkBatch]) -> ChunkBatch:
    """Batches as one; each keeps its own sentences."""
    offsets = np.cumsum([0] + [len(batch.phrases) for batch in batches])
    return ChunkBatch(
        observation=torch.cat([batch.observation for batch in batches]),
        action=torch.cat([batch.action for batch in batches]),
        counted=torch.cat([batch.counted for batch in batches]),
        reward=torch.cat([batch.reward for batch in batches]),
        discount=torch.cat([batch.discount for batch in batches]),
        next_observation=torch.cat([batch.next_observation for batch in batches]),
        phrases=[text for batch in batches for text in batch.phrases],
        goal=torch.cat([b.goal + int(o) for b, o in zip(batches, offsets, strict=False)]),
    )


def _steps_until(event: np.ndarray, left: np.ndarray) -> np.ndarray:
    """[N] steps from each step until the next one at which `event` is true, in its episode.

    0: at this very step; _NEVER: not until the episode's end.
    """
    steps = np.arange(len(event))
    when = np.where(event, steps, _NEVER)
    following = np.minimum.accumulate(when[::-1])[::-1]
    return np.where(following < steps + left, following - steps, _NEVER)
