"""Hindsight phrases: what could have been said to someone who then went where the data went."""

from collections.abc import Sequence

import numpy as np

from lmdiff.goals.grammar import Phrase, PlaceKey
from lmdiff.tasks.pointmaze import PointMaze


class HindsightPhrases:
    """Finds recorded states that a phrase describes, and phrases for places."""

    def __init__(self, task: PointMaze, phrases: Sequence[Phrase]):
        self.task = task
        self.texts: dict[PlaceKey, list[str]] = {}
        self.cells = {phrase.place: phrase.cells for phrase in phrases}
        for phrase in phrases:
            self.texts.setdefault(phrase.place, []).append(phrase.text)
        self.places = list(self.texts)
        # A kind of place (corner, cell, ...) is drawn by the root of its number of places: cells
        # are many and need many examples, yet must not drown the four corners.
        kinds = [place[0] for place in self.places]
        weights = np.array([kinds.count(kind) ** -0.5 for kind in kinds])
        self._weights = weights / weights.sum()

    def index(self, states: np.ndarray) -> dict[PlaceKey, np.ndarray]:
        """For each place, the indices of `states` [N, observation] that it clearly describes."""
        clear = np.flatnonzero(self.task.centred(states))
        cells = np.round(self.task.to_cells(states[clear])).astype(int)
        by_cell: dict[tuple[int, int], list[int]] = {}
        for index, (row, column) in zip(clear, cells, strict=True):
            by_cell.setdefault((int(row), int(column)), []).append(int(index))
        return {
            place: np.array([i for cell in sorted(cells) for i in by_cell.get(cell, [])], np.int64)
            for place, cells in self.cells.items()
        }

    def draw_place(self, rng: np.random.Generator) -> PlaceKey:
        """A place to go to."""
        return self.places[rng.choice(len(self.places), p=self._weights)]

    def draw_text(self, place: PlaceKey, rng: np.random.Generator) -> str:
        """A phrase for it."""
        texts = self.texts[place]
        return texts[rng.integers(len(texts))]
