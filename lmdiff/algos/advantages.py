"""Advantages from rewards of several samples of one prompt; no critic is needed."""

from typing import Literal

import torch
from torch import Tensor

from lmdiff.errors import UserError

STD_EPSILON = 1e-4


def group_advantages(
    rewards: Tensor,
    group_size: int,
    baseline: Literal["mean", "leave-one-out", "none"] = "mean",
    scale: Literal["none", "group", "batch"] = "group",
) -> Tensor:
    """How much better each sample is than its group.

    A group whose rewards are all equal teaches nothing and gets exactly 0, whatever is divided by.

    Args:
        rewards: [N]; the samples of one prompt follow each other. NaN: no reward is known; such a
            sample gets 0 and is left out of its group's figures.
        group_size: samples of one prompt.
        baseline: what is subtracted. `mean` of the group (GRPO, arXiv:2402.03300), or that of the
            others (RLOO, arXiv:2402.14740), which does not shrink the gradient by (n - 1) / n. With
            `none`, samples are only ever made more likely, in proportion to their rewards (RAFT,
            arXiv:2304.06767, if those are 0 and 1). On average all three agree; which of them
            varies least depends on which samples have the larger gradients.
        scale: divide by the standard deviation of the group (GRPO, BGPO), of the batch
            (REINFORCE++), or by none (Dr. GRPO, arXiv:2503.20783; d1, ESPO, SPG, wd1).

    Returns:
        [N]

    Raises:
        UserError: the rewards are not whole groups, or a group is one sample.
    """
    if group_size < 2:
        raise UserError(
            f"A group of {group_size} has nothing to compare with: use 2 samples a prompt or more."
        )
    if rewards.ndim != 1 or len(rewards) % group_size:
        raise UserError(
            f"{tuple(rewards.shape)} rewards are not whole groups of {group_size} samples."
        )
    groups = rewards.view(-1, group_size)
    known = ~groups.isnan()
    filled = torch.where(known, groups, 0.0)
    count = known.sum(1, keepdim=True)
    centred = torch.where(known, groups - filled.sum(1, keepdim=True) / count.clamp_min(1), 0.0)
    advantages = filled if baseline == "none" else centred
    if baseline == "leave-one-out":
        advantages = centred * count / (count - 1).clamp_min(1)
    if scale == "group":
        variance = (centred**2).sum(1, keepdim=True) / (count - 1).clamp_min(1)
        advantages = advantages / (variance.sqrt() + STD_EPSILON)
    elif scale == "batch":
        present = rewards[~rewards.isnan()]
        spread = present.std() if len(present) > 1 else present.new_tensor(0.0)
        advantages = advantages / (spread + STD_EPSILON)
    highest = groups.masked_fill(~known, -torch.inf).amax(1, keepdim=True)
    lowest = groups.masked_fill(~known, torch.inf).amin(1, keepdim=True)
    return torch.where(known & (highest > lowest), advantages, 0.0).view(-1)
