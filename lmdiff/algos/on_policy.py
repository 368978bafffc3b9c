"""What on-policy algorithms share: decisions of a round, advantages, a value function.

A decision is one chunk of actions, of which some were done. Policy and value learn together from a
round of them (PPO, arXiv:1707.06347), with generalised advantages (GAE, arXiv:1506.02438).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmdiff.algos.critics import Critic
from lmdiff.denoisers.actions import ActionDenoiser
from lmdiff.denoisers.situation import Situation


class Decisions(NamedTuple):
    """B decisions of the policy that played the round, and what they were worth."""

    now: Situation
    chain: Tensor
    """[B, links, horizon, action] how the chunk came about; the last link is the chunk."""
    counted: Tensor
    """[B, horizon] bool: actions that were done."""
    memory: tuple[Tensor, ...]
    """What the algorithm knew of each decision when it was made; B rows each."""
    advantage: Tensor
    """[B], normalised over the round."""
    returns: Tensor
    """[B] what the value function should have said."""
    teaches_actor: Tensor
    """[B] 1, or 0 while only the value function learns."""


class OnPolicy(nn.Module, ABC):
    """A policy and a value function.

    Args:
        actor: samples chunks.
        value: of situations (a critic without actions).
    """

    critic = None
    candidates = 1
    links: int
    """Of a chain."""
    return_unit: Tensor
    """Size of the first round's returns, in which values are learnt; 0 before there is one."""

    def __init__(self, actor: ActionDenoiser, value: Critic):
        super().__init__()
        self.actor, self.value = actor, value
        self.register_buffer("return_unit", torch.zeros(()))

    def worth(self, now: Situation) -> Tensor:
        """[B] what is still to be gained, in the reward's units."""
        return self.value(now)[0] * self.return_unit

    @abstractmethod
    def explore(self, now: Situation, steps: int, generator: torch.Generator) -> Tensor:
        """Chains [B, links, horizon, action] of the present policy."""

    @abstractmethod
    def remember(
        self, now: Situation, chain: Tensor, counted: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """What is needed later to compare the policy with the present one; rows as `chain`."""

    @abstractmethod
    def policy_loss(self, batch: Decisions) -> tuple[Tensor, dict[str, Tensor]]:
        """[B] losses, and scalars to log."""

    def forward(self, batch: Decisions, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalar `loss` of a batch and its parts; nothing is drawn."""
        policy, metrics = self.policy_loss(batch)
        # A network's first outputs are about 1, and it moves slowly: dense rewards add up to more.
        value_loss = ((self.value(batch.now)[0] - batch.returns / self.return_unit) ** 2).mean()
        policy_loss = (policy * batch.teaches_actor).mean()
        return {
            "loss": policy_loss + value_loss,
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            **metrics,
        }

    def after_step(self) -> None:
        """No targets follow."""


def gae(rewards: Tensor, discounts: Tensor, values: Tensor, trace: float) -> Tensor:
    """[D] advantages of an episode's decisions (arXiv:1506.02438, eq. 16).

    Args:
        rewards: [D] discounted sums of the rewards until the next decision.
        discounts: [D] of what comes after it: gamma to the number of steps; 0 at success. At a time
            limit the episode goes on in the value of what is seen last.
        values: [D + 1] of the situations, the last one included.
        trace: lambda; 1 takes what was really gained, 0 trusts the values.
    """
    errors = rewards + discounts * values[1:] - values[:-1]
    advantages, following = torch.empty_like(errors), errors.new_zeros(())
    for index in reversed(range(len(errors))):
        following = errors[index] + discounts[index] * trace * following
        advantages[index] = following
    return advantages
