"""The trajectory denoiser: windows of (observation, action, signal) under a goal, in any role."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmdiff.denoisers.contract import Condition
from lmdiff.denoisers.network import GoalContext, TrajectoryTransformer
from lmdiff.denoisers.processes import Process, make_process
from lmdiff.denoisers.roles import Masks, find_role, role_masks


@dataclass(frozen=True)
class TrajectoryDraw:
    """Times, noise and roles of one evaluation of the loss; use it twice to compare two models."""

    level: Tensor
    """[B] noise level of what is asked."""
    noise: Tensor
    """[B, H, C]"""
    masks: Masks


class TrajectoryDenoiser(nn.Module):
    """A denoiser (see contract.py) over normalised windows `[B, H, observation + action + signal]`.

    Args:
        network: predicts; its config names the noise process.
        roles: the roles that training draws, and their shares.
    """

    group_of_channel: Tensor

    def __init__(self, network: TrajectoryTransformer, roles: Mapping[str, float] | None = None):
        super().__init__()
        self.network = network
        self.roles = dict(roles or {"planner": 1.0})
        for name in self.roles:
            find_role(name)
        config = network.config
        self.process: Process = make_process(config["process"], config["prediction"])
        sizes = torch.tensor(network.group_sizes)
        self.register_buffer(
            "group_of_channel", torch.repeat_interleave(torch.arange(len(sizes)), sizes), False
        )

    def draw_noise(self, x: Tensor, generator: torch.Generator) -> TrajectoryDraw:
        """Roles and noise for windows `x` [B, H, C]; `generator` is on the same device.

        Levels are stratified over the batch, which lowers the variance of its mean loss.
        """
        batch, horizon = x.shape[:2]
        shares = torch.tensor(list(self.roles.values()), device=x.device)
        drawn = torch.multinomial(shares, batch, replacement=True, generator=generator)
        names = list(self.roles)
        masks = role_masks([names[index] for index in drawn.tolist()], horizon, x.device)
        strata = torch.randperm(batch, generator=generator, device=x.device)
        jitter = torch.rand(batch, generator=generator, device=x.device)
        return TrajectoryDraw(
            level=(strata + jitter) / batch,
            noise=torch.randn(x.shape, generator=generator, device=x.device),
            masks=masks,
        )

    def read_goal(self, condition: Condition, batch: int) -> GoalContext:
        """The goal as the network's layers read it."""
        words, state = condition.words, condition.state
        given = condition.state_given
        device = self.network.nothing.device
        if state is None:
            state = torch.zeros(batch, self.network.config["goal_size"], device=device)
            given = torch.zeros(batch, dtype=torch.bool, device=device)
        elif given is None:
            given = torch.ones(batch, dtype=torch.bool, device=device)
        return self.network.read_goal(
            words.states if words is not None else None,
            words.mask if words is not None else None,
            state,
            given,
        )

    def loss(self, x: Tensor, condition: Condition, draw: TrajectoryDraw) -> Tensor:
        """[B] squared errors of the prediction, averaged over what is asked.

        Each group counts alike, whatever its size. Differentiable; the weights of the currency
        `-log p(x | c) <= E[loss]` are dropped, as is usual (Ho et al., arXiv:2006.11239, eq. 14).
        """
        masks = draw.masks
        goal = self.read_goal(condition.hidden(~masks.goal), len(x))
        level = masks.level(draw.level)
        channel_level = level[..., self.group_of_channel]
        xt = self.process.corrupt(x, draw.noise, channel_level)
        xt = torch.where(masks.absent[..., self.group_of_channel], 0.0, xt)
        prediction = self.process.predict(self.network(xt, level, goal), xt, channel_level)
        error = (prediction - self.process.target(x, draw.noise, channel_level)) ** 2
        error = error * self.process.weight(channel_level)
        # The mean over each group's own channels, then over the entries that are asked.
        per_group = torch.stack(
            [part.mean(-1) for part in error.split(self.network.group_sizes, -1)], -1
        )
        asked = masks.asked.to(per_group.dtype)
        return (per_group * asked).sum((1, 2)) / asked.sum((1, 2)).clamp_min(1.0)

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        given: Tensor,
        role: str,
        scheduler: Any,
        num_inference_steps: int,
        guidance_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Denoise what a role asks.

        Args:
            condition: goals of B windows.
            given: [B, H, C] normalised windows; entries that the role gives are read from it.
            role: a name in ROLES.
            scheduler: a diffusers scheduler of the network's process.
            num_inference_steps: denoising steps.
            guidance_scale: classifier-free guidance `w` in `nothing + w (goal - nothing)`
                (arXiv:2207.12598); 1 is none.
            generator: for the noise; on the CPU or the device of `given`.

        Returns:
            [B, H, C]: given entries as they were, asked ones denoised, absent ones zero.
        """
        batch = len(given)
        masks = role_masks([role] * batch, given.shape[1], given.device)
        asked = masks.asked[..., self.group_of_channel]
        fixed = torch.where(masks.absent[..., self.group_of_channel], 0.0, given)
        shown = condition.hidden(~masks.goal)
        guided = guidance_scale != 1.0 and bool(masks.goal.any())
        if guided:  # one batch of twice the size, goals shown and then hidden
            shown = shown.stacked(condition.hidden(torch.ones_like(masks.goal)))
        goal = self.read_goal(shown, 2 * batch if guided else batch)

        self.process.set_timesteps(scheduler, num_inference_steps, given.device)
        noise_device = generator.device if generator is not None else given.device
        noise = torch.randn(given.shape, generator=generator, device=noise_device).to(given.device)
        sample = noise
        for timestep in scheduler.timesteps:
            sample = torch.where(asked, sample, fixed)
            level = masks.level(self.process.level(timestep).expand(batch))
            if guided:
                both = self.network(sample.repeat(2, 1, 1), level.repeat(2, 1, 1), goal)
                with_goal, without = both.chunk(2)
                output = without + guidance_scale * (with_goal - without)
            else:
                output = self.network(sample, level, goal)
            prediction = self.process.predict(output, sample, level[..., self.group_of_channel])
            sample = scheduler.step(prediction, timestep, sample, generator=generator).prev_sample
        return torch.where(asked, sample, fixed)
