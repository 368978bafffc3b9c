"""IDQL: imitate with a diffusion policy, act by the best of N samples under an implicit critic.

Hansen-Estruch et al., arXiv:2304.10573. Critic and actor share nothing, and the actor is never
asked to go where the data does not.
"""

import torch
from torch import Tensor

from lmdiff.algos.bc import hide_some
from lmdiff.algos.config import IDQLConfig
from lmdiff.algos.critics import Critic
from lmdiff.algos.transitions import Transitions
from lmdiff.algos.values import ImplicitQ
from lmdiff.denoisers.actions import ActionDenoiser


class IDQL(ImplicitQ):
    """Implicit Q-learning beside behaviour cloning.

    Args:
        actor: imitates.
        critic: of chunks; ranks samples when acting.
        value: of situations.
        config: expectile and number of samples.
        target_rate: how fast the critic's target follows.
        condition_dropout: share of the goals to hide from the actor, for guidance.
    """

    def __init__(
        self,
        actor: ActionDenoiser,
        critic: Critic,
        value: Critic,
        config: IDQLConfig,
        target_rate: float,
        condition_dropout: float = 0.0,
    ):
        super().__init__(critic, value, config.expectile, target_rate)
        self.actor, self.candidates = actor, config.candidates
        self.condition_dropout = condition_dropout

    def forward(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalar `loss` of a batch and its parts."""
        values = self.values(batch)
        shown = hide_some(batch, self.condition_dropout, generator)
        draw = self.actor.draw_noise(batch.action, generator, batch.counted)
        imitation = self.actor.loss(batch.action, shown.now, draw).mean()
        return {
            "loss": values.loss + imitation,
            "actor_loss": imitation.detach(),
            **values.metrics,
        }
