"""Actors: whatever gives action chunks for situations, by their network's number of levels."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lmdiff.denoisers.actions import ActionDenoiser
from lmdiff.denoisers.flow_map import FlowMap
from lmdiff.denoisers.policy_networks import PolicyNetwork
from lmdiff.denoisers.situation import Situation


class Actor(Protocol):
    """Gives chunks; see `ActionDenoiser.sample` for the arguments."""

    network: PolicyNetwork
    chunk: tuple[int, int]

    def scheduler(self) -> Any: ...

    def sample(
        self,
        condition: Situation,
        num_inference_steps: int = ...,
        scheduler: Any = ...,
        noise: Tensor | None = ...,
        generator: torch.Generator | None = ...,
        guidance_scale: float = ...,
    ) -> Tensor: ...


class OneStepPolicy(nn.Module):
    """Noise to a chunk in one evaluation, without levels (FQL's student, arXiv:2502.02538).

    Args:
        network: with `levels` 0.
    """

    def __init__(self, network: PolicyNetwork):
        super().__init__()
        self.network = network
        self.chunk: tuple[int, int] = network.config["horizon"], network.config["action_size"]

    def forward(self, condition: Situation, noise: Tensor) -> Tensor:
        """Chunks [B, horizon, action] of noise of that shape; not clamped."""
        return self.network(noise, noise.new_zeros(len(noise), 0), self.network.read(condition))

    def scheduler(self) -> None:
        """There is nothing to schedule."""

    def sample(
        self,
        condition: Situation,
        num_inference_steps: int = 1,
        scheduler: Any = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        guidance_scale: float = 1.0,
    ) -> Tensor:
        """Chunks in [-1, 1]; it knows one step only, and no guidance."""
        del num_inference_steps, scheduler, guidance_scale
        device = condition.observation.device
        if noise is None:
            where = generator.device if generator is not None else device
            size = len(condition.goal), *self.chunk
            noise = torch.randn(size, generator=generator, device=where).to(device)
        return self(condition, noise).clamp(-1, 1)


def make_actor(network: PolicyNetwork) -> ActionDenoiser | FlowMap | OneStepPolicy:
    """The actor that a network belongs to."""
    levels = network.config["levels"]
    if levels == 0:
        return OneStepPolicy(network)
    return ActionDenoiser(network) if levels == 1 else FlowMap(network)
