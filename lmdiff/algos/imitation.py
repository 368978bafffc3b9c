"""Imitation: minimise the mean denoising loss.

Diffusion and flow-matching behaviour cloning, over data whose goals are given in hindsight
(Chi et al., arXiv:2303.04137; Ajay et al., arXiv:2211.15657). A share of the goals is hidden, so
that guidance can compare with and without (Ho and Salimans, arXiv:2207.12598).
"""

from typing import Any

import torch
from torch import Tensor

from lmdiff.denoisers.contract import Condition, Denoiser


def imitation_loss(
    denoiser: Denoiser[Tensor, Condition, Any],
    x: Tensor,
    condition: Condition,
    condition_dropout: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Scalar `loss` of a batch.

    Args:
        denoiser: to train.
        x: [B, ...] data.
        condition: its goals.
        condition_dropout: share of the goals to hide.
        generator: of noise and hiding; on the device of `x`.
    """
    hidden = torch.rand(len(x), generator=generator, device=x.device) < condition_dropout
    draw = denoiser.draw_noise(x, generator)
    return {"loss": denoiser.loss(x, condition.hidden(hidden), draw).mean()}
