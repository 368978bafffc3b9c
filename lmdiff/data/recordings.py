"""Recordings: what was done in a world, as flat arrays in one safetensors file.

Policies learn from tens of thousands of short episodes; HDF5 (Minari) keeps a group for each, which
takes minutes to open. Here an episode is a range of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lmdiff.errors import UserError


@dataclass(frozen=True)
class Demonstration:
    """One episode of T steps."""

    observations: np.ndarray
    """[T + 1, observation]"""
    actions: np.ndarray
    """[T, action] in [-1, 1]"""
    goals: np.ndarray
    """[T] index of what was asked at each step."""
    success: np.ndarray
    """[T] bool: whether it was achieved by that step."""
    rewards: np.ndarray | None = None
    """[T] of the steps; None: success is all that is known."""


@dataclass(frozen=True)
class Recording:
    """Episodes one after the other. N steps in E episodes."""

    observations: np.ndarray
    """[N + E, observation] float32, or uint8 where all values are small whole numbers."""
    actions: np.ndarray
    """[N, action] float32"""
    goals: np.ndarray
    """[N] int64"""
    success: np.ndarray
    """[N] bool"""
    lengths: np.ndarray
    """[E] int64: steps of each episode."""
    rewards: np.ndarray | None = None
    """[N] float32; None: success is all that is known."""

    @property
    def steps(self) -> int:
        """Steps in all."""
        return len(self.actions)

    @property
    def episode(self) -> np.ndarray:
        """[N] the episode of each step. The observation before step n is row n + episode[n]."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def only(self, chosen: np.ndarray) -> "Recording":
        """The episodes that are `chosen` [E] bool."""
        steps = np.repeat(chosen, self.lengths)
        return Recording(
            observations=self.observations[np.repeat(chosen, self.lengths + 1)],
            actions=self.actions[steps],
            goals=self.goals[steps],
            success=self.success[steps],
            lengths=self.lengths[chosen],
            rewards=None if self.rewards is None else self.rewards[steps],
        )

    @property
    def successes(self) -> np.ndarray:
        """[E] bool: episodes that achieved their goal in the end."""
        return self.success[np.cumsum(self.lengths) - 1]

    def save(self, path: Path) -> None:
        """Write everything into one file."""
        known = {name: array for name, array in vars(self).items() if array is not None}
        save_file({name: np.ascontiguousarray(a) for name, a in known.items()}, path)


def joined(demonstrations: Sequence[Demonstration]) -> Recording:
    """Episodes side by side; those without a step are left out."""
    kept = [episode for episode in demonstrations if len(episode.actions)]
    if not kept:
        raise UserError("Not one step was recorded.")
    observations = np.concatenate([episode.observations for episode in kept])
    small = observations.astype(np.uint8)
    if np.array_equal(small, observations):
        observations = small  # one-hot codes, a quarter of the memory
    return Recording(
        observations=observations,
        actions=np.concatenate([episode.actions for episode in kept]).astype(np.float32),
        goals=np.concatenate([episode.goals for episode in kept]).astype(np.int64),
        success=np.concatenate([episode.success for episode in kept]).astype(bool),
        lengths=np.array([len(episode.actions) for episode in kept], np.int64),
        rewards=_together([episode.rewards for episode in kept]),
    )


def concatenated(recordings: Sequence[Recording]) -> Recording:
    """Recordings one after the other."""
    return Recording(
        observations=np.concatenate([part.observations for part in recordings]),
        actions=np.concatenate([part.actions for part in recordings]),
        goals=np.concatenate([part.goals for part in recordings]),
        success=np.concatenate([part.success for part in recordings]),
        lengths=np.concatenate([part.lengths for part in recordings]),
        rewards=_together([part.rewards for part in recordings]),
    )


def _together(rewards: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """All rewards, or None where some are not known."""
    known = [part for part in rewards if part is not None]
    return np.concatenate(known).astype(np.float32) if len(known) == len(rewards) else None


def read_recording(path: Path) -> Recording:
    """Read and check a recording.

    Raises:
        UserError: it cannot be read, its parts do not fit, or a value is not finite.
    """
    again = f"Delete it and run again: rm {path}"
    try:
        recording = Recording(**load_file(path))
    except (SafetensorError, OSError, TypeError) as error:
        raise UserError(f"The recording {path} cannot be read ({error}). {again}") from error
    steps, episodes = recording.steps, len(recording.lengths)
    fits = (
        len(recording.observations) == steps + episodes
        and len(recording.goals) == len(recording.success) == steps == recording.lengths.sum()
        and (recording.rewards is None or len(recording.rewards) == steps)
    )
    if not fits:
        raise UserError(f"The parts of the recording {path} do not fit together. {again}")
    numbers = {"observations": recording.observations, "actions": recording.actions}
    if recording.rewards is not None:
        numbers["rewards"] = recording.rewards
    for name, values in numbers.items():
        if not np.isfinite(values).all():
            raise UserError(f"The recording {path} has {name} that are not finite. {again}")
    return recording
