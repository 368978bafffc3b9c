"""Critics of action chunks under a goal in words, and slowly following copies of networks."""

import itertools
import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.func import functional_call

from lmdiff.denoisers.situation import GoalReader, Situation


class EnsembleLinear(nn.Module):
    """`count` linear maps side by side: [count, B, inputs] -> [count, B, outputs]."""

    def __init__(self, count: int, inputs: int, outputs: int):
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(count, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class Critic(ModelMixin, ConfigMixin):
    """An ensemble of MLPs with layer norms: the value of chunks, or (`horizon` 0) of situations.

    Sizes as in FQL (arXiv:2502.02538): 4 layers of 512, GELU, layer norm.

    Args:
        observation_size: of a situation.
        action_size: of one action.
        horizon: actions in a chunk; 0: a value function of situations alone.
        words_width: width of the language model's token states.
        width, layers: of each MLP.
        count: MLPs in the ensemble.
        goal_width: of the vector that words become.
    """

    @register_to_config
    def __init__(
        self,
        observation_size: int,
        action_size: int,
        horizon: int,
        words_width: int,
        width: int = 512,
        layers: int = 4,
        count: int = 2,
        goal_width: int = 128,
    ):
        super().__init__()
        self.count = count
        self.goal_reader = GoalReader(words_width, goal_width)
        sizes = [observation_size + goal_width + horizon * action_size, *([width] * layers)]
        parts: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            parts += [EnsembleLinear(count, inputs, outputs), nn.GELU(), nn.LayerNorm(outputs)]
        self.mlp = nn.Sequential(*parts, EnsembleLinear(count, width, 1))

    def forward(self, situation: Situation, action: Tensor | None = None) -> Tensor:
        """[count, B] values; `action` is [B, horizon, action]."""
        features = [situation.observation, self.goal_reader(situation)]
        if action is not None:
            features.append(action.flatten(1))
        x = torch.cat(features, -1)
        return self.mlp(x.expand(self.count, -1, -1))[..., 0]


class Target(nn.Module):
    """A copy of a network that follows it slowly (Polyak averaging), for bootstrapped values.

    The copy is kept in buffers: checkpoints hold it, and no optimizer or average touches it.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self._network = (network,)  # a tuple hides it: it is registered elsewhere
        for name, parameter in network.named_parameters():
            self.register_buffer(_flat(name), parameter.detach().clone())

    @torch.no_grad()
    def follow(self, rate: float) -> None:
        """Move by `rate` (0 to 1) towards the network."""
        for name, parameter in self._network[0].named_parameters():
            self.get_buffer(_flat(name)).lerp_(parameter, rate)

    @torch.no_grad()
    def forward(self, *arguments: Any) -> Tensor:
        """The copy's output, without gradients to anything."""
        network = self._network[0]
        weights = {name: self.get_buffer(_flat(name)) for name, _ in network.named_parameters()}
        return functional_call(network, weights, arguments)


def fixed(network: nn.Module, *arguments: Any) -> Tensor:
    """A network's output, with gradients to the arguments and none to the network."""
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return functional_call(network, weights, arguments)


def _flat(name: str) -> str:
    return name.replace(".", "/")  # the names of buffers have no dots
