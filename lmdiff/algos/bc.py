"""Behaviour cloning with a diffusion or flow policy over action chunks.

Diffusion Policy (Chi et al., arXiv:2303.04137) with words as the goal: the mean denoising loss.
"""

import torch
from torch import Tensor, nn

from lmdiff.algos.transitions import Transitions
from lmdiff.denoisers.actions import ActionDenoiser


def hide_some(batch: Transitions, share: float, generator: torch.Generator) -> Transitions:
    """The batch with the goals of a share of its rows hidden, for guidance."""
    goal = batch.now.goal
    hidden = torch.rand(goal.shape, generator=generator, device=goal.device) < share
    return batch._replace(now=batch.now.hidden(hidden))


class BC(nn.Module):
    """Imitates what was recorded.

    Args:
        actor: to train.
        condition_dropout: share of the goals to hide, for guidance.
    """

    def __init__(self, actor: ActionDenoiser, condition_dropout: float = 0.0):
        super().__init__()
        self.actor, self.critic, self.candidates = actor, None, 1
        self.condition_dropout = condition_dropout

    def forward(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalar `loss` of a batch."""
        batch = hide_some(batch, self.condition_dropout, generator)
        draw = self.actor.draw_noise(batch.action, generator, batch.counted)
        return {"loss": self.actor.loss(batch.action, batch.now, draw).mean()}

    def after_step(self) -> None:
        """No targets follow."""
