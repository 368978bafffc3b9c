"""Q-chunking: a critic of whole chunks, and the best of N chunks of a flow that imitates.

Li et al., arXiv:2507.07969. Over a chunk of h actions the backup spans h steps without bias, as
the critic is told all of them. The next chunk of the target is chosen as in acting. Their second
variant, QC-FQL, is FQL on chunks (fql.py).
"""

import torch
from torch import Tensor, nn

from lmdiff.algos.bc import hide_some
from lmdiff.algos.config import QCConfig
from lmdiff.algos.critics import Critic, Target
from lmdiff.algos.selection import best_of
from lmdiff.algos.transitions import Transitions
from lmdiff.algos.values import td_loss
from lmdiff.denoisers.actions import ActionDenoiser


class QC(nn.Module):
    """A flow over chunks and a critic of them.

    Args:
        actor: imitates.
        critic: of chunks; ranks samples when acting and in targets.
        config: numbers of samples and of steps.
        target_rate: how fast the critic's target follows.
        condition_dropout: share of the goals to hide from the actor, for guidance.
    """

    def __init__(
        self,
        actor: ActionDenoiser,
        critic: Critic,
        config: QCConfig,
        target_rate: float,
        condition_dropout: float = 0.0,
    ):
        super().__init__()
        self.actor, self.candidates = actor, config.candidates
        self.critic, self.target = critic, Target(critic)
        self.config, self.target_rate = config, target_rate
        self.condition_dropout = condition_dropout

    def forward(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalar `loss` of a batch and its parts."""
        following = best_of(
            self.actor,
            self.critic,
            batch.next,
            self.config.target_candidates,
            num_inference_steps=self.config.flow_steps,
            generator=generator,
        )
        next_value = self.target(batch.next, following).mean(0)
        critic = td_loss(self.critic, batch, next_value)
        shown = hide_some(batch, self.condition_dropout, generator)
        draw = self.actor.draw_noise(batch.action, generator, batch.counted)
        imitation = self.actor.loss(batch.action, shown.now, draw).mean()
        return {
            "loss": critic + imitation,
            "critic_loss": critic.detach(),
            "actor_loss": imitation.detach(),
            "next_value": next_value.mean(),
        }

    def after_step(self) -> None:
        """The critic's target follows."""
        self.target.follow(self.target_rate)
