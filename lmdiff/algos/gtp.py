"""Generative trajectory policies: a flow map, learnt from data and weighted by advantage.

Feng et al., arXiv:2510.11499, after consistency trajectory models (Kim et al., arXiv:2310.02279):
the map is anchored by flow matching and made consistent with itself, both under the weights
`exp(max(0, A) / temperature)` of implicit Q-learning (the paper has an actor-critic instead). It
acts in one, two or four steps.
"""

import torch
from torch import Tensor

from lmdiff.algos.bc import hide_some
from lmdiff.algos.config import GTPConfig
from lmdiff.algos.critics import Critic, Target
from lmdiff.algos.transitions import Transitions
from lmdiff.algos.values import ImplicitQ, advantage_weights
from lmdiff.denoisers.actions import ActionDraw
from lmdiff.denoisers.flow_map import FlowMap
from lmdiff.denoisers.situation import Situation

_TO_CLEAN = 0.25  # share of the ways that end at the clean chunk, where sampling ends


class GTP(ImplicitQ):
    """Implicit Q-learning, and a flow map of what was better than its situation's value.

    Args:
        actor: the map.
        critic: of chunks.
        value: of situations.
        config: weights and losses.
        target_rate: how fast the targets of critic and map follow.
        condition_dropout: share of the goals to hide from the actor, for guidance.
    """

    def __init__(
        self,
        actor: FlowMap,
        critic: Critic,
        value: Critic,
        config: GTPConfig,
        target_rate: float,
        condition_dropout: float = 0.0,
    ):
        super().__init__(critic, value, config.expectile, target_rate)
        self.actor, self.candidates, self.config = actor, 1, config
        self.teacher = Target(actor)
        self.condition_dropout = condition_dropout

    def forward(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalar `loss` of a batch and its parts (the paper's eq. 19)."""
        values = self.values(batch)
        weights = advantage_weights(
            values.advantage.clamp_min(0), self.config.temperature, self.config.largest_weight
        )
        shown = hide_some(batch, self.condition_dropout, generator).now
        draw = self.actor.draw_noise(batch.action, generator, batch.counted)
        flow = (weights * self.actor.loss(batch.action, shown, draw)).mean()
        draw = self.actor.draw_noise(batch.action, generator, batch.counted)
        consistency = self._consistency(batch.action, shown, draw, generator)
        consistency = (weights * consistency).mean()
        return {
            "loss": values.loss + consistency + self.config.anchor * flow,
            "flow_loss": flow.detach(),
            "consistency_loss": consistency.detach(),
            "largest_weight": weights.max(),
            **values.metrics,
        }

    def _consistency(
        self, x: Tensor, situation: Situation, draw: ActionDraw, generator: torch.Generator
    ) -> Tensor:
        """[B] `|Phi(a_t, t, s) - Phi_ema(a_u, u, s)|^2` for t > u > s (eq. 17).

        `a_u` continues the way from `a_t`: along the line to the recorded chunk,
        `(a_t - x) / t` for a short stride, or by the slow copy of the map itself, for any.
        """
        level = draw.level
        share, ends = torch.rand(2, len(x), generator=generator, device=x.device)
        to = level * share * (ends > _TO_CLEAN)
        xt = self.actor.process.corrupt(x, draw.noise, level[:, None, None])
        if self.config.teacher == "data":
            between = torch.maximum(to, level - self.config.stride)
            xu = self.actor.process.corrupt(x, draw.noise, between[:, None, None])
        else:
            middle = torch.rand(len(x), generator=generator, device=x.device)
            between = torch.lerp(to, level, middle)
            xu = self.teacher(xt, level, between, situation)
        wanted = self.teacher(xu, between, to, situation)
        error = ((self.actor(xt, level, to, situation) - wanted) ** 2).mean(-1)
        counted = torch.ones_like(error) if draw.counted is None else draw.counted
        return (error * counted).sum(-1) / counted.sum(-1).clamp_min(1)

    def after_step(self) -> None:
        """The targets follow."""
        super().after_step()
        self.teacher.follow(self.target_rate)
