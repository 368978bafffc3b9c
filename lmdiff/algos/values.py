"""Values of chunks and situations, and the weights that advantages give to imitation."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmdiff.algos.critics import Critic, Target
from lmdiff.algos.transitions import Transitions

_LEAST_STD = 1e-3  # of advantages: below it there is nothing to prefer


def td_loss(critic: Critic, batch: Transitions, next_value: Tensor) -> Tensor:
    """Scalar: mean squared error of all critics' values of the chunks, one backup.

    The target is `reward + discount * next_value`; `next_value` [B] gets no gradient. A chunk that
    an episode's end cut short is no chunk, and does not count, unless the goal was achieved in it:
    then what would have followed does not matter.
    """
    target = (batch.reward + batch.discount * next_value).detach()
    counted = (batch.counted.all(1) | (batch.discount == 0)).to(target.dtype)
    error = (critic(batch.now, batch.action) - target) ** 2
    return (error * counted).sum(1).mean() / counted.sum().clamp_min(1)


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """Scalar: squares of `target - value`, weighted by `expectile` where the target is higher.

    The minimum is an expectile of the targets: their mean at 0.5, their maximum towards 1
    (implicit Q-learning, Kostrikov et al., arXiv:2110.06169, eq. 5).
    """
    weight = torch.where(difference > 0, expectile, 1 - expectile)
    return (weight * difference**2).mean()


def advantage_weights(advantage: Tensor, temperature: float, largest: float) -> Tensor:
    """[B] `exp(advantage / (temperature * std))`, at most `largest`; then of mean 1.

    Their mean is 1 so that the loss keeps the size of imitation's, whatever the values are.

    Args:
        advantage: [B], without gradient.
        temperature: in standard deviations of the batch's advantages.
        largest: before the division by the mean.
    """
    std = advantage.std().clamp_min(_LEAST_STD)
    # From below as well: where all are far too low, their mean must not be 0.
    weights = (advantage / (temperature * std)).clamp(-20.0, math.log(largest)).exp()
    return weights / weights.mean()


class Values(NamedTuple):
    """What implicit Q-learning makes of a batch."""

    loss: Tensor
    """Scalar, of critic and value."""
    advantage: Tensor
    """[B] of the recorded chunks, without gradient."""
    metrics: dict[str, Tensor]
    """Scalars."""


class ImplicitQ(nn.Module):
    """Implicit Q-learning (arXiv:2110.06169): values from the data's own chunks alone.

    Args:
        critic: of chunks.
        value: of situations (a critic without actions).
        expectile: of the chunks' values that the value of a situation is.
        target_rate: how fast the critic's target follows.
    """

    def __init__(self, critic: Critic, value: Critic, expectile: float, target_rate: float):
        super().__init__()
        self.critic, self.value, self.target = critic, value, Target(critic)
        self.expectile, self.target_rate = expectile, target_rate

    def values(self, batch: Transitions) -> Values:
        """Losses of the value (eq. 5) and of the critic (eq. 6)."""
        difference = self.target(batch.now, batch.action).amin(0) - self.value(batch.now)[0]
        value_loss = expectile_loss(difference, self.expectile)
        with torch.no_grad():
            next_value = self.value(batch.next)[0]
        critic_loss = td_loss(self.critic, batch, next_value)
        advantage = difference.detach()
        metrics = {
            "value_loss": value_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "advantage_std": advantage.std(),
            "value": next_value.mean(),
        }
        return Values(value_loss + critic_loss, advantage, metrics)

    def after_step(self) -> None:
        """The critic's target follows."""
        self.target.follow(self.target_rate)
