"""Flow policy optimisation: PPO whose likelihoods are denoising losses.

McAllister et al., arXiv:2507.21053. With `l` the denoising loss of the chunk that was done, on the
same noise and levels before and after, `exp(l_old - l_new)` stands for the ratio of likelihoods
(a loss is a bound of minus the log-likelihood). The objective is the one that text is trained
with (policy_objectives.py); no likelihood is computed, and the sampler is free.
"""

import torch
from torch import Tensor

from lmdiff.algos.config import FPOConfig
from lmdiff.algos.critics import Critic
from lmdiff.algos.on_policy import Decisions, OnPolicy
from lmdiff.algos.policy_objectives import clipped_ratio, linear_bound, penalised_ratio
from lmdiff.denoisers.actions import ActionDenoiser, ActionDraw
from lmdiff.denoisers.situation import Situation


class FPO(OnPolicy):
    """PPO on differences of denoising losses.

    Args:
        actor: samples chunks.
        value: of situations.
        config: draws and clipping.
    """

    links = 1

    def __init__(self, actor: ActionDenoiser, value: Critic, config: FPOConfig):
        super().__init__(actor, value)
        self.config = config

    def explore(self, now: Situation, steps: int, generator: torch.Generator) -> Tensor:
        return self.actor.sample(now, steps, generator=generator)[:, None]

    def remember(
        self, now: Situation, chain: Tensor, counted: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Levels [B, N], noise [B, N, horizon, action] and losses [B, N] of N draws."""
        x = chain[:, -1]
        shape, device = (len(x), self.config.draws), x.device
        # One draw in each of N strata of the levels, for each decision.
        strata = torch.arange(shape[1], device=device)
        level = (strata + torch.rand(shape, generator=generator, device=device)) / shape[1]
        noise = torch.randn(*shape, *x.shape[1:], generator=generator, device=device)
        return level, noise, self._losses(now, x, counted, level, noise)

    def policy_loss(self, batch: Decisions) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of the ratio; the paper's is `clip`."""
        level, noise, old = batch.memory
        new = self._losses(batch.now, batch.chain[:, -1], batch.counted, level, noise)
        # Averages of clipped differences: one bad draw cannot decide.
        change = (old - new).clamp(-self.config.largest_change, self.config.largest_change)
        log_ratio = self.config.scale * change.mean(1)
        metrics = {"denoising_loss": new.detach().mean()}
        if self.config.objective == "bgpo":
            estimates = self.config.scale * change.T
            loss = linear_bound(estimates, torch.zeros_like(estimates), batch.advantage).sum(0)
            return loss, metrics | {"ratio/max": log_ratio.detach().exp().max()}
        ratio_loss = clipped_ratio if self.config.objective == "clip" else penalised_ratio
        result = ratio_loss(
            log_ratio, torch.zeros_like(log_ratio), batch.advantage, self.config.epsilon
        )
        clipped = (result.clipped_low | result.clipped_high).float()
        metrics |= {"ratio/max": result.ratio.max(), "clip_ratio": clipped.mean()}
        return result.loss, metrics

    def _losses(
        self, now: Situation, x: Tensor, counted: Tensor, level: Tensor, noise: Tensor
    ) -> Tensor:
        """[B, N] denoising losses of the actions that were done."""
        draws = level.shape[1]
        draw = ActionDraw(level.flatten(), noise.flatten(0, 1), counted.repeat_interleave(draws, 0))
        losses = self.actor.loss(x.repeat_interleave(draws, 0), now.repeated(draws), draw)
        return losses.view(-1, draws)
