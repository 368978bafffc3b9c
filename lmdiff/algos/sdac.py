"""Online from scratch: a diffusion policy drawn towards exp(Q), without samples of that density.

Soft diffusion actor-critic (Ma et al., arXiv:2502.00361), reverse sampling score matching: of a
noisy chunk, the clean ones that it may have come from are proposed, and weighted by how the critic
values them; their weighted mean is what a denoiser of the density exp(Q / alpha) would predict. No
gradient goes through the sampler or the critic, and nothing recorded is imitated.

Here proposals stay among possible actions: under a flat prior on [-1, 1], the clean chunk of a
noisy one is a truncated Gaussian, which is drawn exactly.
"""

import torch
from torch import Tensor, nn

from lmdiff.algos.config import SDACConfig
from lmdiff.algos.critics import Critic, Target
from lmdiff.algos.transitions import Transitions
from lmdiff.algos.values import td_loss
from lmdiff.denoisers.actions import ActionDenoiser
from lmdiff.denoisers.situation import Situation

_LEAST_LEVEL = 0.02  # below it a noisy chunk tells all of the clean one
_LEAST_SHARE = 1e-3  # of the clean chunk in a noisy one: pure noise may have come from any
_LEAST_SCALE = 1e-3  # of values: below it there is nothing to prefer
_TAIL = 1e-6  # of a Gaussian: float32 cannot invert what is further out


class SDAC(nn.Module):
    """A flow (or diffusion) over chunks that follows a critic.

    Args:
        actor: learns the density exp(Q / alpha).
        critic: of chunks.
        config: numbers of proposals and steps, and alpha.
        target_rate: how fast the critic's target follows.
    """

    def __init__(
        self, actor: ActionDenoiser, critic: Critic, config: SDACConfig, target_rate: float
    ):
        super().__init__()
        self.actor, self.candidates = actor, config.candidates
        self.critic, self.target = critic, Target(critic)
        self.config, self.target_rate = config, target_rate

    def forward(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalar `loss` of a batch and its parts."""
        with torch.no_grad():
            following = self.actor.sample(batch.next, self.config.flow_steps, generator=generator)
            next_value = self.target(batch.next, following).amin(0)
        critic = td_loss(self.critic, batch, next_value)
        actor, alpha = self._actor_loss(batch.now, batch.action, generator)
        return {
            "loss": critic + actor,
            "critic_loss": critic.detach(),
            "actor_loss": actor.detach(),
            "alpha": alpha,
            "next_value": next_value.mean(),
        }

    def _actor_loss(
        self, now: Situation, action: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Scalar loss, and alpha. The chunks that were done only say which noisy ones to ask of."""
        process = self.actor.process
        draw = self.actor.draw_noise(action, generator)
        levels = draw.level.clamp_min(_LEAST_LEVEL)
        level = levels[:, None, None]
        xt = process.corrupt(action, draw.noise, level)
        one, none = torch.ones_like(level), torch.zeros_like(level)
        clean = process.corrupt(one, none, level).clamp_min(_LEAST_SHARE)
        noise = process.corrupt(none, one, level)
        with torch.no_grad():
            count = self.config.proposals
            proposals = _truncated_gaussian(xt / clean, noise / clean, count, generator)
            values = self.critic(now.repeated(count), proposals.flatten(0, 1)).mean(0)
            values = values.view(-1, count)
            alpha = self.config.temperature * values.var(1).mean().sqrt().clamp_min(_LEAST_SCALE)
            weights = (values / alpha).softmax(1)
            mean = (weights[:, :, None, None] * proposals).sum(1)
            target = process.target(mean, (xt - clean * mean) / noise, level)
        network = self.actor.network
        output = network(xt, levels[:, None].expand(-1, self.actor.levels), network.read(now))
        error = (process.predict(output, xt, level) - target) ** 2
        return (error * process.weight(level)).mean(), alpha

    def after_step(self) -> None:
        """The critic's target follows."""
        self.target.follow(self.target_rate)


def _truncated_gaussian(
    mean: Tensor, deviation: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """[B, count, ...] draws from Gaussians [B, ...] that are cut off at -1 and 1."""
    low, high = (torch.special.ndtr((end - mean) / deviation) for end in (-1.0, 1.0))
    shape = (len(mean), count, *mean.shape[1:])
    uniform = torch.rand(shape, generator=generator, device=generator.device).to(mean.device)
    share = torch.lerp(low[:, None], high[:, None], uniform).clamp(_TAIL, 1 - _TAIL)
    return (mean[:, None] + deviation[:, None] * torch.special.ndtri(share)).clamp(-1, 1)
