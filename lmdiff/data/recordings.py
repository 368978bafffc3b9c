"""Recordings: what experts did in a world, as flat arrays in one safetensors file.

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

    @property
    def steps(self) -> int:
        """Steps in all."""
        return len(self.actions)

    @property
    def episode(self) -> np.ndarray:
        """[N] the episode of each step. The observation before step n is row n + episode[n]."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def save(self, path: Path) -> None:
        """Write everything into one file."""
        save_file({name: np.ascontiguousarray(a) for name, a in vars(self).items()}, path)


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
    )


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
    )
    if not fits:
        raise UserError(f"The parts of the recording {path} do not fit together. {again}")
    for name in ("observations", "actions"):
        if not np.isfinite(getattr(recording, name)).all():
            raise UserError(f"The recording {path} has {name} that are not finite. {again}")
    return recording
