"""What the loop calls: the module's forward, an evaluation, a watcher."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

Evaluate = Callable[[nn.Module, int], dict[str, float]]
Event = Literal["step", "save", "log"]
Watch = Callable[[Event, int, dict[str, Any]], bool | None]


class Trainable(Protocol):
    """What `train` needs of a module: its forward. 'loss' is a differentiable scalar.

    Further entries are scalar metrics, the same ones on every rank. All randomness is drawn from
    `generator` (on the module's device) or from torch's global one; both are seeded at each step.
    """

    def __call__(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]: ...
