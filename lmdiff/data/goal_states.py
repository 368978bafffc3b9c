"""States that phrases describe: what a goal prior learns from.

Hindsight again: whoever stands in a recorded state could have been told to go there. One phrase
goes with several states, since "the lower half" means no single place. A batch is a pure function
of (seed, rank, step).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmdiff.data.hindsight import HindsightPhrases
from lmdiff.errors import UserError


class GoalStates(NamedTuple):
    """B phrases and K states for each, in the data's units."""

    phrases: list[str]
    states: Tensor
    """[B, K, observation]"""


class GoalStateSampler:
    """Draws phrases with recorded states that they describe.

    Args:
        states: [N, observation] recorded.
        phrases: words for places.
    """

    _STREAM = 2**31 - 1  # apart from the windows' draws, which are seeded alike

    def __init__(self, states: np.ndarray, phrases: HindsightPhrases):
        self.states, self.phrases = states, phrases
        self._at = {place: rows for place, rows in phrases.index(states).items() if len(rows)}
        if not self._at:
            raise UserError(
                "No phrase describes any state in the data: raise task.steps, or set "
                "denoiser.words to false."
            )

    def known(self, count: int, seed: int) -> Tensor:
        """[count, observation] states that some phrase describes (repeated if they are few)."""
        described = np.unique(np.concatenate(list(self._at.values())))
        rng = np.random.default_rng([seed, self._STREAM])
        return torch.from_numpy(self.states[_draw(rng, described, count)]).float()

    def batch(self, seed: int, rank: int, step: int, size: int, each: int) -> GoalStates:
        """Batch number `step` of process `rank`: `size` phrases, `each` states a phrase."""
        rng = np.random.default_rng([seed, rank, step, self._STREAM])
        texts, rows = [], np.empty((size, each), np.int64)
        for i in range(size):
            while (place := self.phrases.draw_place(rng)) not in self._at:
                pass  # no recorded state is there
            texts.append(self.phrases.draw_text(place, rng))
            rows[i] = rng.choice(self._at[place], each)
        return GoalStates(texts, torch.from_numpy(self.states[rows]).float())


def _draw(rng: np.random.Generator, items: np.ndarray, count: int) -> np.ndarray:
    return rng.choice(items, count, replace=len(items) < count)
