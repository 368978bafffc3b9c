"""Advantage-weighted imitation: the denoising loss, weighted by how good an action was.

`mean w(A) * l(x | c)` with `w = exp(A / temperature)`: advantage-weighted regression (Peng et al.,
arXiv:1910.00177) with a diffusion or flow policy, as in EDP (arXiv:2305.20081). Weights are scaled
to a mean of 1.
"""

import torch
from torch import Tensor

from lmdiff.algos.bc import hide_some
from lmdiff.algos.config import AWRConfig
from lmdiff.algos.critics import Critic
from lmdiff.algos.transitions import Transitions
from lmdiff.algos.values import ImplicitQ, advantage_weights
from lmdiff.denoisers.actions import ActionDenoiser


class AWR(ImplicitQ):
    """Implicit Q-learning, and imitation of what was better than its situation's value.

    Args:
        actor: imitates.
        critic: of chunks.
        value: of situations.
        config: expectile and weights.
        target_rate: how fast the critic's target follows.
        condition_dropout: share of the goals to hide from the actor, for guidance.
    """

    def __init__(
        self,
        actor: ActionDenoiser,
        critic: Critic,
        value: Critic,
        config: AWRConfig,
        target_rate: float,
        condition_dropout: float = 0.0,
    ):
        super().__init__(critic, value, config.expectile, target_rate)
        self.actor, self.candidates, self.config = actor, 1, config
        self.condition_dropout = condition_dropout

    def forward(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalar `loss` of a batch and its parts."""
        values = self.values(batch)
        weights = advantage_weights(
            values.advantage, self.config.temperature, self.config.largest_weight
        )
        shown = hide_some(batch, self.condition_dropout, generator)
        draw = self.actor.draw_noise(batch.action, generator, batch.counted)
        imitation = (weights * self.actor.loss(batch.action, shown.now, draw)).mean()
        return {
            "loss": values.loss + imitation,
            "actor_loss": imitation.detach(),
            "largest_weight": weights.max(),
            **values.metrics,
        }
