"""The flow map: where the flow takes a noisy chunk from one noise level to any lower one.

`Phi(a_t, t, s)` is the solution at level s of the flow's ODE that passes through `a_t` at level t
(consistency trajectory models, Kim et al., arXiv:2310.02279; generative trajectory policies,
arXiv:2510.11499). One network gives the mean velocity `u` of that way, so that
`Phi(a_t, t, s) = a_t - (t - s) u(a_t, t, s)`, and `u(a_t, t, t)` is the flow's velocity. Sampling
takes as many steps as one likes, one included, by diffusers' FlowMapEulerDiscreteScheduler.
"""

from typing import Any

import torch
from diffusers import FlowMapEulerDiscreteScheduler
from torch import Tensor

from lmdiff.denoisers.actions import ActionDenoiser
from lmdiff.denoisers.policy_networks import PolicyNetwork
from lmdiff.denoisers.processes import TRAIN_TIMESTEPS
from lmdiff.denoisers.situation import Situation
from lmdiff.errors import UserError


class FlowMap(ActionDenoiser):
    """A flow map of action chunks. Its `loss` is flow matching: the map between equal levels.

    Args:
        network: with `levels` 2 (from, to) and the process `flow`.

    Raises:
        UserError: it has another process.
    """

    def __init__(self, network: PolicyNetwork):
        super().__init__(network)
        if network.config["process"] != "flow":
            raise UserError(
                "A flow map (algorithm gtp) follows a flow: set network.process = 'flow'."
            )

    def velocity(self, xt: Tensor, level: Tensor, to: Tensor, context: Any) -> Tensor:
        """Mean velocity [B, horizon, action] from `level` [B] `to` [B]; context: `network.read`."""
        output = self.network(xt, torch.stack([level, to], -1), context)
        return self.process.predict(output, xt, level[:, None, None])

    def forward(self, xt: Tensor, level: Tensor, to: Tensor, condition: Situation) -> Tensor:
        """`Phi`: the chunks `xt` [B, horizon, action] at `level` [B], taken `to` [B]."""
        velocity = self.velocity(xt, level, to, self.network.read(condition))
        return xt - (level - to)[:, None, None] * velocity

    def scheduler(self) -> Any:
        """The default sampler: any number of applications of the map, equal steps."""
        return FlowMapEulerDiscreteScheduler(TRAIN_TIMESTEPS)

    def sample(
        self,
        condition: Situation,
        num_inference_steps: int = 2,
        scheduler: Any = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Chunks [B, horizon, action] in [-1, 1], for B situations.

        Args:
            condition: what is seen and asked.
            num_inference_steps: applications of the map.
            scheduler: a FlowMapEulerDiscreteScheduler; default: one with equal steps.
            noise: to begin from; default: drawn with `generator`.
            generator: on the CPU or the device of the situations.
            guidance_scale: weight of the goal against none, on mean velocities; 1 is none.
        """
        batch, device = len(condition.goal), condition.observation.device
        scheduler = scheduler if scheduler is not None else self._scheduler
        if noise is None:
            where = generator.device if generator is not None else device
            noise = torch.randn(batch, *self.chunk, generator=generator, device=where).to(device)
        contexts = [self.network.read(condition)]
        if guidance_scale != 1.0:
            contexts.append(
                self.network.read(condition.hidden(torch.ones_like(condition.goal) > 0))
            )
        scheduler.set_timesteps(num_inference_steps, device=device)
        levels = scheduler.sigmas.to(noise.dtype).expand(batch, -1)
        sample = noise
        for step, timestep in enumerate(scheduler.timesteps):
            ends = levels[:, step], levels[:, step + 1]
            velocity, *nothing = (self.velocity(sample, *ends, context) for context in contexts)
            if nothing:
                velocity = nothing[0] + guidance_scale * (velocity - nothing[0])
            sample = scheduler.step(velocity, timestep, sample).prev_sample
        return sample.clamp(-1, 1)
