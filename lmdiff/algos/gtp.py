"""Generative trajectory policies: a flow map, learnt from data and weighted by advantage.

Feng et al., arXiv:2510.11499: the map is anchored by flow matching and made consistent with itself,
both under the weights `exp(max(0, A) / temperature)` of implicit Q-learning (the paper has an
actor-critic instead). It acts in one, two or four steps.

The paper's map is consistent over strides, `Phi(a_t, t, s) = Phi_slow(a_u, u, s)`, where `a_u` lies
on the straight line to the recorded chunk (its stable score approximation). A stride of finite
length draws the map to the mean of what the data does, and a bootstrap through a slow copy errs on
long ways. Here strides go to zero, where the same condition is MeanFlow's (Geng et al.,
arXiv:2505.13447, eq. 6).
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmdiff.algos.bc import hide_some
from lmdiff.algos.config import GTPConfig
from lmdiff.algos.critics import Critic
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
        target_rate: how fast the critic's target follows.
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
        share, ends = torch.rand(2, len(weights), generator=generator, device=weights.device)
        to = draw.level * share * (ends > _TO_CLEAN)
        consistency = (weights * consistency_loss(self.actor, batch.action, shown, draw, to)).mean()
        return {
            "loss": values.loss + consistency + self.config.anchor * flow,
            "flow_loss": flow.detach(),
            "consistency_loss": consistency.detach(),
            "largest_weight": weights.max(),
            **values.metrics,
        }


def consistency_loss(
    actor: FlowMap, x: Tensor, situation: Situation, draw: ActionDraw, to: Tensor
) -> Tensor:
    """[B] squared errors of the mean velocity from `draw.level` `to` [B], which is lower.

    On one trajectory `(t - s) u(a_t, t, s)` grows with t by the velocity v, so `u = v - (t - s)
    du/dt`, the derivative being taken along the trajectory. As in flow matching, the line to the
    recorded chunk stands for v, which it is on average.
    """
    level, velocity = draw.level, draw.noise - x
    xt = actor.process.corrupt(x, draw.noise, level[:, None, None])
    context = actor.network.read(situation)

    def mean_velocity(xt: Tensor, level: Tensor) -> Tensor:
        return actor.velocity(xt, level, to, context)

    # Fused attention has no forward-mode derivative.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        change = torch.func.jvp(mean_velocity, (xt, level), (velocity, torch.ones_like(level)))[1]
        wanted = velocity - (level - to)[:, None, None] * change
    error = ((mean_velocity(xt, level) - wanted) ** 2).mean(-1)
    counted = torch.ones_like(error) if draw.counted is None else draw.counted
    return (error * counted).sum(-1) / counted.sum(-1).clamp_min(1)
