"""Policy objectives as losses: functions of log-likelihood estimates and advantages alone.

An estimate is anything with one number a sample (or token): a text model's ELBO, or minus the
denoising loss of an action. A ratio `exp(l_old - l_new)` of denoising losses is FPO
(arXiv:2507.21053), the very function that ESPO
uses for text.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_LOG_RATIO = 20.0  # beyond it a ratio overflows, and 0 * inf in its gradient is NaN


class RatioLoss(NamedTuple):
    """A ratio objective and what is logged of it; all of the shape of the estimates."""

    loss: Tensor
    ratio: Tensor
    clipped_low: Tensor
    """bool: below 1 - epsilon with a negative advantage; no gradient there."""
    clipped_high: Tensor
    """bool: above 1 + epsilon_high with a positive advantage."""


def clipped_ratio(
    log_probs: Tensor,
    old: Tensor,
    advantages: Tensor,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
) -> RatioLoss:
    """PPO's clipped ratio (arXiv:1707.06347, eq. 7), for tokens or for whole samples.

    diffu-GRPO (arXiv:2504.12216) has it for tokens; ESPO and GDPO (arXiv:2510.08554) for
    sequences, of estimates that are divided by the length; FPO for actions
    (there `log_probs` is minus the denoising loss).

    Args:
        log_probs: [B] or [B, L] estimates, differentiable.
        old: the same under the policy that sampled, on the same noise; detached.
        advantages: [B].
        epsilon: the ratio counts between 1 - epsilon and 1 + epsilon_high.
        epsilon_high: as `epsilon`, if None (DAPO, arXiv:2503.14476, sets it apart).
        delta: with a negative advantage, the ratio never counts above this (two-sided clipping,
            arXiv:2505.07291); it should be above 1 + epsilon_high.
    """
    advantages = advantages.view(-1, *[1] * (log_probs.ndim - 1))
    high = epsilon if epsilon_high is None else epsilon_high
    ratio = (log_probs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    bounded = ratio if delta is None else ratio.clamp_max(delta)
    loss = -torch.minimum(bounded * advantages, ratio.clamp(1 - epsilon, 1 + high) * advantages)
    return RatioLoss(
        loss,
        ratio.detach(),
        (ratio < 1 - epsilon) & (advantages < 0),
        (ratio > 1 + high) & (advantages > 0),
    )


def penalised_ratio(
    log_probs: Tensor, old: Tensor, advantages: Tensor, epsilon: float = 0.2
) -> RatioLoss:
    """SPO: the ratio, and a square that pulls it back where it strays (arXiv:2401.16025, eq. 13).

    Its best ratio is 1 + epsilon for a positive advantage and 1 - epsilon for a negative one.
    Clipping only stops pushing there; where a network drags the losses of good samples along with
    those of bad ones, as denoisers do, nothing would bring them back.

    Args:
        log_probs: [B] estimates, differentiable.
        old: the same under the policy that sampled, on the same noise; detached.
        advantages: [B].
        epsilon: how far the ratio should go.
    """
    ratio = (log_probs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    loss = advantages.abs() / (2 * epsilon) * (ratio - 1) ** 2 - advantages * ratio
    strayed = (ratio.detach() - 1).abs() > epsilon
    return RatioLoss(loss, ratio.detach(), strayed & (ratio < 1), strayed & (ratio > 1))


def linear_bound(
    log_probs: Tensor, old: Tensor, advantages: Tensor, shares: Tensor | None = None
) -> Tensor:
    """BGPO's bound of the ratio objective, a sum over Monte Carlo samples (arXiv:2510.11683).

    With d_j the change of sample j's estimate, `exp(mean d) >= 1 + mean d` bounds it where the
    advantage is positive, and Jensen's `exp(mean d) <= mean exp(d)` where it is negative. As a sum,
    it can be differentiated one sample at a time, in one pass. On-policy (all d_j = 0) its value
    and gradient are those of the ratio objective; nowhere does it exceed it.

    Args:
        log_probs: [S, B] one estimate a Monte Carlo sample, differentiable.
        old: the same under the policy that sampled, on the same noise; detached.
        advantages: [B].
        shares: [S] of each sample in the mean, summing to 1; equal, if None.

    Returns:
        [S, B] losses to be summed over S.
    """
    if shares is None:
        shares = log_probs.new_full((len(log_probs),), 1 / len(log_probs))
    d = log_probs - old
    # The untaken branch must stay finite: its gradient is 0 times it.
    jensen = torch.where(advantages < 0, d, 0.0).exp()
    return -shares[:, None] * advantages * torch.where(advantages < 0, jensen, 1 + d)


def sandwiched(elbo: Tensor, eubo: Tensor, advantages: Tensor, mixture: float = 0.5) -> Tensor:
    """SPG: the ELBO is raised where the advantage is positive, a mixture lowered elsewhere.

    From arXiv:2510.09541: no ratio and no clipping. What the paper calls an evidence
    upper bound is used without its constant, and is then a surrogate and no bound for
    beta < length (see `likelihood.evidence_upper`).

    Args:
        elbo: [B] estimates, differentiable.
        eubo: [B] estimates, differentiable.
        advantages: [B].
        mixture: share of `eubo` where the advantage is negative.

    Returns:
        [B] losses.
    """
    negative = mixture * eubo + (1 - mixture) * elbo
    return -advantages * torch.where(advantages < 0, negative, elbo)


def weighted_likelihood(
    log_probs: Tensor, advantages: Tensor, group_size: int, psi: float = 1.0
) -> Tensor:
    """wd1: good samples' likelihood up, bad ones' down, without a ratio (arXiv:2507.08838).

    Weights are softmax(psi A) and softmax(-psi A) over the group, so equal rewards give exactly
    zero. (The published code takes the softmax over whatever is on the device.)

    Args:
        log_probs: [B] estimates, differentiable; the samples of one prompt follow each other.
        advantages: [B].
        group_size: samples of one prompt.
        psi: inverse temperature.

    Returns:
        [B] losses, whose mean is the mean over groups of the paper's loss (a sum over a group).
    """
    groups = advantages.view(-1, group_size)
    weights = (-psi * groups).softmax(-1) - (psi * groups).softmax(-1)
    return group_size * weights.view(-1) * log_probs


def preference(
    chosen: Tensor,
    chosen_reference: Tensor,
    rejected: Tensor,
    rejected_reference: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """DPO on ELBO estimates: VRPO (LLaDA 1.5, arXiv:2505.19223).

    Its variance comes down with the samples' number, and by using one draw for policy and
    reference, which is up to the caller.

    Args:
        chosen: [B] estimates of the better samples, differentiable.
        chosen_reference: the same under the reference, on the same noise; detached.
        rejected: [B] estimates of the worse ones.
        rejected_reference: the same under the reference.
        beta: strength of the pull towards the reference.

    Returns:
        [B] losses.
    """
    margin = (chosen - chosen_reference) - (rejected - rejected_reference)
    return -F.logsigmoid(beta * margin)


def over_tokens(
    losses: Tensor,
    mask: Tensor,
    how: Literal["sequence", "token", "constant"] = "token",
    length: int | None = None,
) -> Tensor:
    """Token losses to one a sample; the mean over samples is then the loss.

    Args:
        losses: [B, L].
        mask: [B, L] bool: tokens that count.
        how: every `sequence` counts alike (GRPO), or every `token` (DAPO, diffu-GRPO), or the sum
            is divided by a `constant` (Dr. GRPO).
        length: that constant.

    Returns:
        [B]
    """
    sums = torch.where(mask, losses, 0.0).sum(-1)
    if how == "sequence":
        return sums / mask.sum(-1).clamp_min(1)
    if how == "token":
        return sums * len(mask) / mask.sum().clamp_min(1)
    return sums / (length or mask.shape[-1])
