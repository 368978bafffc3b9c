"""Flow Q-learning: a flow imitates; a one-step student imitates the flow and climbs the critic.

Park et al., arXiv:2502.02538. The critic's gradient goes through one evaluation of the student,
never through the flow's steps; acting takes one evaluation. On chunks of actions, without the
normalisation of Q, it is QC-FQL (Li et al., arXiv:2507.07969).
"""

import torch
from torch import Tensor, nn

from lmdiff.algos.bc import hide_some
from lmdiff.algos.config import FQLConfig
from lmdiff.algos.critics import Critic, Target, fixed
from lmdiff.algos.transitions import Transitions
from lmdiff.algos.values import td_loss
from lmdiff.denoisers.actions import ActionDenoiser
from lmdiff.denoisers.actors import OneStepPolicy


class FQL(nn.Module):
    """The flow, its student and their critic.

    Args:
        actor: the one-step student, which acts.
        flow: imitates the data.
        critic: of chunks.
        config: how near the student stays to the flow, and the flow's steps.
        target_rate: how fast the critic's target follows.
        condition_dropout: share of the goals to hide from the flow; the student sees them all.
    """

    def __init__(
        self,
        actor: OneStepPolicy,
        flow: ActionDenoiser,
        critic: Critic,
        config: FQLConfig,
        target_rate: float,
        condition_dropout: float = 0.0,
    ):
        super().__init__()
        self.actor, self.candidates, self.flow = actor, 1, flow
        self.critic, self.target = critic, Target(critic)
        self.config, self.target_rate = config, target_rate
        self.condition_dropout = condition_dropout

    def forward(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalar `loss` of a batch and its parts (the paper's Algorithm 1)."""
        critic = self._critic_loss(batch, generator)
        imitation = self._flow_loss(batch, generator)
        distillation, climb, q = self._student_losses(batch, generator)
        return {
            "loss": critic + imitation + self.config.alpha * distillation + climb,
            "critic_loss": critic.detach(),
            "flow_loss": imitation.detach(),
            "distillation_loss": distillation.detach(),
            "q": q,
        }

    def _critic_loss(self, batch: Transitions, generator: torch.Generator) -> Tensor:
        """What the student would do next, valued by the target critics' mean (eq. 4)."""
        with torch.no_grad():
            following = self.actor.sample(batch.next, generator=generator)
            next_value = self.target(batch.next, following).mean(0)
        return td_loss(self.critic, batch, next_value)

    def _flow_loss(self, batch: Transitions, generator: torch.Generator) -> Tensor:
        """Flow matching (eq. 1)."""
        shown = hide_some(batch, self.condition_dropout, generator)
        draw = self.flow.draw_noise(batch.action, generator, batch.counted)
        return self.flow.loss(batch.action, shown.now, draw).mean()

    def _student_losses(
        self, batch: Transitions, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distance to the flow from the same noise; minus Q, perhaps normalised; mean Q (eq. 8)."""
        x = batch.action
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        with torch.no_grad():
            wanted = self.flow.sample(batch.now, self.config.flow_steps, noise=noise)
        action = self.actor(batch.now, noise)
        distillation = ((action - wanted) ** 2).mean()
        q = fixed(self.critic, batch.now, action.clamp(-1, 1))
        climb = -q.mean()
        if self.config.normalize_q:
            climb = climb / q.detach().mean(0).abs().mean().clamp_min(1e-6)
        return distillation, climb, q.detach().mean()

    def after_step(self) -> None:
        """The critic's target follows."""
        self.target.follow(self.target_rate)
