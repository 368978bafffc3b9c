"""The action denoiser: chunks of actions in a situation. The trajectory model's policy role, slim.

Where only actions are asked, a network over them alone does, and acts in a millisecond.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmdiff.denoisers.policy_networks import PolicyNetwork
from lmdiff.denoisers.processes import Process, make_process
from lmdiff.denoisers.situation import Situation


@dataclass(frozen=True)
class ActionDraw:
    """Times and noise of one evaluation of the loss; use it twice to compare two policies."""

    level: Tensor
    """[B] noise level."""
    noise: Tensor
    """[B, horizon, action]"""
    counted: Tensor | None = None
    """[B, horizon] bool: actions that count; all, if None. Chunks may outlast their episodes."""


class ActionDenoiser(nn.Module):
    """A denoiser (see contract.py) of action chunks [B, horizon, action] in [-1, 1].

    Args:
        network: predicts; its config names the noise process.
    """

    def __init__(self, network: PolicyNetwork):
        super().__init__()
        self.network = network
        config = network.config
        self.process: Process = make_process(config["process"], config["prediction"])
        self.chunk: tuple[int, int] = config["horizon"], config["action_size"]
        self.levels: int = config["levels"]
        # Made once: making one takes as long as evaluating a small network.
        self._scheduler: Any = self.scheduler()

    def draw_noise(
        self, x: Tensor, generator: torch.Generator, counted: Tensor | None = None
    ) -> ActionDraw:
        """Noise for chunks `x`; levels are stratified over the batch."""
        batch, device = len(x), x.device
        strata = torch.randperm(batch, generator=generator, device=device)
        jitter = torch.rand(batch, generator=generator, device=device)
        noise = torch.randn(x.shape, generator=generator, device=device)
        return ActionDraw((strata + jitter) / batch, noise, counted)

    def loss(self, x: Tensor, condition: Situation, draw: ActionDraw) -> Tensor:
        """[B] squared errors of the prediction, averaged over the actions that count."""
        level = draw.level[:, None, None]
        xt = self.process.corrupt(x, draw.noise, level)
        levels = draw.level[:, None].expand(-1, self.levels)
        output = self.network(xt, levels, self.network.read(condition))
        prediction = self.process.predict(output, xt, level)
        error = (prediction - self.process.target(x, draw.noise, level)) ** 2
        error = (error * self.process.weight(level)).mean(-1)
        if draw.counted is None:
            return error.mean(-1)
        return (error * draw.counted).sum(-1) / draw.counted.sum(-1).clamp_min(1)

    def scheduler(self) -> Any:
        """The default sampler."""
        return self.process.scheduler()

    def sample(
        self,
        condition: Situation,
        num_inference_steps: int = 10,
        scheduler: Any = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Chunks [B, horizon, action] in [-1, 1], for B situations.

        Args:
            condition: what is seen and asked.
            num_inference_steps: denoising steps.
            scheduler: a diffusers scheduler of the network's process; default: the process's own.
            noise: to begin from; default: drawn with `generator`.
            generator: on the CPU or the device of the situations.
            guidance_scale: weight of the goal against none; 1 is none.

        Gradients flow (through all steps) where they are enabled.
        """
        batch, device = len(condition.goal), condition.observation.device
        scheduler = scheduler if scheduler is not None else self._scheduler
        if noise is None:
            where = generator.device if generator is not None else device
            noise = torch.randn(batch, *self.chunk, generator=generator, device=where).to(device)
        context, without = self.network.read(condition), None
        if guidance_scale != 1.0:
            everywhere = torch.ones(batch, dtype=torch.bool, device=device)
            without = self.network.read(condition.hidden(everywhere))
        self.process.set_timesteps(scheduler, num_inference_steps, device)
        sample = noise
        for timestep in scheduler.timesteps:
            level = self.process.level(timestep).expand(batch, 1)
            output = self.network(sample, level, context)
            if without is not None:
                nothing = self.network(sample, level, without)
                output = nothing + guidance_scale * (output - nothing)
            prediction = self.process.predict(output, sample, level[..., None])
            sample = scheduler.step(prediction, timestep, sample, generator=generator).prev_sample
        return sample.clamp(-1, 1)
