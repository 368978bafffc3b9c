"""What a policy sees: observations, and goals in words. The condition of an action denoiser."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmdiff.goals.encoder import GoalTokens


class Situation(NamedTuple):
    """B situations that share few goals: each goal's words are held, and read, once."""

    observation: Tensor
    """[B, history * observation], normalised; the newest observation is the last."""
    words: GoalTokens
    """Token states [U + 1, L, W] of U goals; the last row is no goal: it has no token."""
    goal: Tensor
    """[B] which of them; U: none."""
    readings: dict[nn.Module, Tensor] | None = None
    """What networks made of the words, kept for as long as their weights stay; None: not kept."""

    def read(self, reader: nn.Module, make: Callable[[GoalTokens], Tensor]) -> Tensor:
        """`make(words)`, by `reader`'s weights; once for all calls where readings are kept."""
        if self.readings is None:
            return make(self.words)
        if reader not in self.readings:
            self.readings[reader] = make(self.words)
        return self.readings[reader]

    def hidden(self, where: Tensor) -> "Situation":
        """The same without the goals of rows `where` [B] (for classifier-free guidance)."""
        return self._replace(goal=torch.where(where, len(self.words.mask) - 1, self.goal))

    def repeated(self, times: int) -> "Situation":
        """Each situation `times` times, one after the other."""
        return self._replace(
            observation=self.observation.repeat_interleave(times, 0),
            goal=self.goal.repeat_interleave(times, 0),
        )


def with_nothing(words: GoalTokens) -> GoalTokens:
    """The goals [U, L, W] and, as the last row, no goal."""
    return GoalTokens(
        nn.functional.pad(words.states, (0, 0, 0, 0, 0, 1)),
        nn.functional.pad(words.mask, (0, 0, 0, 1)),
    )


class GoalReader(nn.Module):
    """Words to one vector by attention pooling: learned queries over the token states.

    A mean over tokens hardly tells goals apart; which words count has to be learned.

    Args:
        words_width: width of the token states.
        width: of the vector.
        heads: queries; each reads its own part of the vector.
    """

    def __init__(self, words_width: int, width: int = 128, heads: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(words_width)
        self.key_value = nn.Linear(words_width, 2 * width)
        self.query = nn.Parameter(torch.randn(heads, 1, width // heads))
        # What is read where there is no goal; always there, so attention is never empty.
        self.nothing = nn.Parameter(torch.randn(2, heads, 1, width // heads) * 0.02)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, situation: Situation) -> Tensor:
        """Vectors [B, width] of the situations' goals."""
        return situation.read(self, self.pool)[situation.goal]

    def pool(self, goals: GoalTokens) -> Tensor:
        """Vectors [U, width] of U goals."""
        words, mask = goals
        rows, heads = len(mask), len(self.query)
        keys, values = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in self.key_value(self.norm(words)).chunk(2, -1)
        )
        nothing = self.nothing[:, None].expand(-1, rows, -1, -1, -1)
        read = nn.functional.scaled_dot_product_attention(
            self.query.expand(rows, -1, -1, -1),
            torch.cat([nothing[0], keys], 2),
            torch.cat([nothing[1], values], 2),
            attn_mask=nn.functional.pad(mask, (1, 0), value=True)[:, None, None],
        )
        return self.out(read.flatten(1))


class CellReader(nn.Module):
    """Like parts of an observation (the cells of a view), all read alike in the light of the goal.

    Features of each cell are scaled and shifted by the goal (FiLM, Perez et al., arXiv:1709.07871,
    as in BabyAI's own baseline). "The red ball" is then found wherever it lies; a plain MLP has to
    learn it for each cell anew, and with ten thousand demonstrations does not.

    Args:
        count, size: of the cells.
        history: observations, each of which begins with them.
        goal_width: of the vector that the goal's words became.
        inner, outer: features of a cell, before and after.
    """

    def __init__(
        self,
        count: int,
        size: int,
        history: int,
        goal_width: int,
        inner: int = 64,
        outer: int = 8,
    ):
        super().__init__()
        self.count, self.size, self.history = count, size, history
        self.width = history * count * outer
        self.features = nn.Linear(size, inner)
        self.film = nn.Linear(goal_width, 2 * inner)
        self.out = nn.Linear(inner, outer)

    def forward(self, observation: Tensor, goal: Tensor) -> Tensor:
        """[B, width] for observations [B, history * observation] and goal vectors [B, goal]."""
        newest = observation.unflatten(1, (self.history, -1))
        cells = newest[..., : self.count * self.size].unflatten(-1, (self.count, self.size))
        scale, shift = self.film(goal)[:, None, None].chunk(2, -1)
        features = torch.relu((1 + scale) * self.features(cells) + shift)
        return self.out(features).flatten(1)
