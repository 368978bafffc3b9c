"""A toy to train."""

import torch
from torch import nn

from lmdiff.config import TrainingConfig


class Toy(nn.Module):
    """Draws from the generator and, through dropout, from the global one; has a buffer."""

    steps: torch.Tensor

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 2)]
        self.net = nn.Sequential(*layers)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, batch, generator):
        x, y = batch
        if self.training:
            self.steps += 1
        x = x + 0.1 * torch.randn(x.shape, generator=generator)
        loss = (self.net(x) - y).square().mean()
        return {"loss": loss, "rmse": loss.detach().sqrt()}


def batches(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 4, generator=generator)
    return x, x[:, :2]


def make_config(**settings):
    defaults = {
        "max_steps": 20,
        "warmup_steps": 4,
        "checkpoint_every": 5,
        "log_every": 4,
        "learning_rate": 1e-2,
        "ema_decay": 0.9,
    }
    return TrainingConfig(**(defaults | settings))
