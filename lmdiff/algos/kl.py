"""Estimates of KL(policy || reference) from samples of the policy (Schulman, "Approximating KL").

With x from the policy and `d = log p(x) - log ref(x)`. The values of k1 and k3 are unbiased; k2's
is not. As a loss it is the other way round: with the samples held fixed, k2 alone has the gradient
of the divergence; k1's is zero on average, and k3's is that of KL(reference || policy) (Tang and
Munos, arXiv:2506.09477). Off-policy none of this holds exactly.
"""

from typing import Literal

import torch
from torch import Tensor

KLName = Literal["k1", "k2", "k3"]


def kl_estimate(name: KLName, log_probs: Tensor, reference: Tensor) -> Tensor:
    """One estimate a sample (or token); any shape, the same for both arguments.

    Args:
        name: k1 = d; k2 = d^2 / 2; k3 = exp(-d) - 1 + d, never negative.
        log_probs: of the policy, differentiable.
        reference: of the reference, detached.
    """
    d = log_probs - reference
    if name == "k1":
        return d
    if name == "k2":
        return d**2 / 2
    return torch.expm1(-d) + d
