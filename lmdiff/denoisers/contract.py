"""What every denoiser offers: noise that can be reused, a loss per sample, samples.

Learning rules (lmdiff/algos) know this contract and no network. A trajectory denoiser and a text
denoiser fulfil it alike; reusing one draw for two losses keeps their difference's variance low.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lmdiff.goals.encoder import GoalTokens

X = TypeVar("X")
C = TypeVar("C", contravariant=True)
D = TypeVar("D")


class Denoiser(Protocol[X, C, D]):
    """A generative model of data `x` under a condition `c` (a goal)."""

    def draw_noise(self, x: X, generator: torch.Generator) -> D:
        """Times and corruption for one evaluation of the loss; may be used again."""
        ...

    def loss(self, x: X, condition: C, draw: D) -> Tensor:
        """[B] denoising losses, differentiable, one a sample."""
        ...

    def sample(self, condition: C, *args, **kwargs) -> X:
        """New data under a condition, through a diffusers scheduler."""
        ...


@dataclass(frozen=True)
class Condition:
    """Goals of B samples: words, states, either or both, or nothing."""

    words: GoalTokens | None = None
    """Token states [B, L, width] and mask [B, L]; a row without any real token has no words."""
    state: Tensor | None = None
    """[B, goal state], normalised."""
    state_given: Tensor | None = None
    """[B] bool: which rows of `state` count; all, if None."""

    def hidden(self, where: Tensor) -> "Condition":
        """The same with the goals of rows `where` [B] hidden (for classifier-free guidance)."""
        words, given = self.words, self.state_given
        if words is not None:
            words = GoalTokens(words.states, words.mask & ~where[:, None])
        if self.state is not None:
            if given is None:
                given = torch.ones(len(self.state), dtype=torch.bool, device=self.state.device)
            given = given & ~where
        return Condition(words=words, state=self.state, state_given=given)

    def rows(self, indices: list[int]) -> "Condition":
        """The goals of some rows."""
        words = self.words
        if words is not None:
            words = GoalTokens(words.states[indices], words.mask[indices])
        return Condition(
            words=words,
            state=None if self.state is None else self.state[indices],
            state_given=None if self.state_given is None else self.state_given[indices],
        )

    def stacked(self, other: "Condition") -> "Condition":
        """This condition's rows, then those of `other`, which is made of the same parts."""

        def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
            return None if first is None or second is None else torch.cat([first, second])

        words = self.words
        if words is not None and other.words is not None:
            words = GoalTokens(
                torch.cat([words.states, other.words.states]),
                torch.cat([words.mask, other.words.mask]),
            )
        return Condition(
            words=words,
            state=both(self.state, other.state),
            state_given=both(self.state_given, other.state_given),
        )
