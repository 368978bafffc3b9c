"""DPPO: PPO over the denoising chain, whose steps are Gaussians with known likelihoods.

Ren et al., arXiv:2409.00588. The last steps of the sampler (DDIM or Euler) get noise of a fixed
deviation; each is then an action of its own, with the chunk's advantage, discounted by how far it
is from the end of the chain. Evaluation samples without that noise.
"""

import math

import torch
from torch import Tensor

from lmdiff.algos.config import DPPOConfig
from lmdiff.algos.critics import Critic
from lmdiff.algos.on_policy import Decisions, OnPolicy
from lmdiff.algos.policy_objectives import clipped_ratio
from lmdiff.denoisers.actions import ActionDenoiser
from lmdiff.denoisers.situation import Situation
from lmdiff.errors import UserError


class DPPO(OnPolicy):
    """PPO over the last denoising steps.

    Args:
        actor: samples chunks.
        value: of situations.
        config: the chain, which of its steps learn, their noise and clipping.
    """

    def __init__(self, actor: ActionDenoiser, value: Critic, config: DPPOConfig):
        if not 1 <= config.trained_steps <= config.steps:
            raise UserError(
                f"algorithm.dppo.trained_steps = {config.trained_steps}: choose 1 to the "
                f"{config.steps} denoising steps of the chain (algorithm.dppo.steps)."
            )
        super().__init__(actor, value)
        self.config, self.links = config, config.trained_steps + 1
        process, device = actor.process, torch.device("cpu")
        scheduler = process.scheduler()
        process.set_timesteps(scheduler, config.steps, device)
        levels = process.level(scheduler.timesteps.float()).tolist()
        self.levels: list[float] = [*levels, 0.0]
        """Noise levels before each step, and at the end."""

    def explore(self, now: Situation, steps: int, generator: torch.Generator) -> Tensor:
        del steps  # the chain's own are the ones that learn
        context = self.actor.network.read(now)
        x = self._noise((len(now.goal), *self.actor.chunk), now, generator)
        first = len(self.levels) - self.links
        chain = [x]
        for index in range(len(self.levels) - 1):
            mean = self._mean(x, context, index)
            x = mean
            if index >= first:
                x = mean + self.config.deviation * self._noise(mean.shape, now, generator)
            chain.append(x)
        return torch.stack(chain[first:], 1)

    def remember(
        self, now: Situation, chain: Tensor, counted: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Log-likelihoods [B, links - 1] of the steps."""
        return (self.log_probs(now, chain, counted),)

    def policy_loss(self, batch: Decisions) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped ratio of each step; earlier steps count less (eq. 3 and 5)."""
        new = self.log_probs(batch.now, batch.chain, batch.counted)
        result = clipped_ratio(new, batch.memory[0], batch.advantage, self.config.epsilon)
        remaining = torch.arange(new.shape[1] - 1, -1, -1, device=new.device)
        loss = (result.loss * self.config.denoising_discount**remaining).mean(1)
        clipped = (result.clipped_low | result.clipped_high).float()
        return loss, {"ratio/max": result.ratio.max(), "clip_ratio": clipped.mean()}

    def log_probs(self, now: Situation, chain: Tensor, counted: Tensor) -> Tensor:
        """[B, links - 1] log-likelihoods of the steps, in nats for each number that was done.

        As in the paper's code they are means over a chunk's numbers, so that a clipping range does
        not depend on how many there are.
        """
        context = self.actor.network.read(now)
        first = len(self.levels) - self.links
        found = []
        for link in range(self.links - 1):
            mean = self._mean(chain[:, link], context, first + link)
            found.append(self._log_prob(chain[:, link + 1], mean, counted))
        return torch.stack(found, 1)

    def _log_prob(self, x: Tensor, mean: Tensor, counted: Tensor) -> Tensor:
        deviation = self.config.deviation
        each = -0.5 * ((x - mean) / deviation) ** 2 - math.log(deviation * math.sqrt(2 * math.pi))
        return (each.mean(-1) * counted).sum(1) / counted.sum(1).clamp_min(1)

    def _mean(self, x: Tensor, context: object, index: int) -> Tensor:
        """Where the sampler goes from `x` in step `index`, without noise."""
        process = self.actor.process
        level, to = (x.new_tensor(self.levels[at]) for at in (index, index + 1))
        output = self.actor.network(x, level.expand(len(x), 1), context)
        prediction = process.predict(output, x, level)
        return process.move(prediction, x, level, to)

    def _noise(self, shape: tuple[int, ...], now: Situation, generator: torch.Generator) -> Tensor:
        noise = torch.randn(shape, generator=generator, device=generator.device)
        return noise.to(now.observation.device)
