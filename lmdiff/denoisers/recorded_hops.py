"""Recorded hops: plans are moved to where the data goes, after the network has made them.

A network's plan may cut a corner: nearly right everywhere, impossible in one place. Where little
noise is left, the best denoiser of a finite data set needs no training: it gives the nearest
recorded sample. The samples here are hops, pairs of neighbouring steps: each pair of a plan moves
to the nearest recorded hop, each step to the mean of what its two pairs say, a few times over.

(CompDiffuser, arXiv:2503.05153, composes plans of overlapping pieces too; its are a network's.)
"""

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

_PAIRS_AT_ONCE = 1024  # distances to all hops are in memory for so many pairs


class RecordedHops(ModelMixin, ConfigMixin):
    """Recorded pairs of normalised observations, `stride` environment steps apart.

    Distances are in observation space, which suits low-dimensional observations.

    Args:
        count: how many.
        observation_size: size of an observation.
    """

    hops: Tensor

    @register_to_config
    def __init__(self, count: int, observation_size: int):
        super().__init__()
        self.register_buffer("hops", torch.zeros(count, 2 * observation_size))

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray, count: int, seed: int) -> "RecordedHops":
        """A random choice of `count` hops.

        Args:
            before: [N, observation] normalised states.
            after: [N, observation] where they led.
            count: hops to keep; all, if there are fewer.
            seed: of the choice.
        """
        size = min(count, len(before))
        chosen = np.random.default_rng(seed).choice(len(before), size, replace=False)
        kept = cls(size, before.shape[1])
        kept.hops.copy_(torch.from_numpy(np.concatenate([before[chosen], after[chosen]], 1)))
        return kept

    @torch.no_grad()
    def attract(self, plan: Tensor, fixed: Tensor, times: int) -> Tensor:
        """Plans [B, T, observation] moved towards the data.

        Args:
            plan: [B, T, observation] normalised.
            fixed: [B, T] bool: steps that stay (where the agent is, and the goal).
            times: how often; 0 changes nothing.
        """
        for _ in range(times if plan.shape[1] > 1 else 0):
            pairs = torch.cat([plan[:, :-1], plan[:, 1:]], -1)
            before, after = self._nearest(pairs).chunk(2, -1)
            # The first and the last step are in one pair only.
            said = torch.cat([before, after[:, -1:]], 1)
            said[:, 1:-1] = (before[:, 1:] + after[:, :-1]) / 2
            plan = torch.where(fixed[..., None], plan, said)
        return plan

    @torch.no_grad()
    def gaps(self, plan: Tensor) -> Tensor:
        """[B, T - 1] how far each hop of plans [B, T, observation] is from a recorded one."""
        pairs = torch.cat([plan[:, :-1], plan[:, 1:]], -1)
        return (pairs - self._nearest(pairs)).norm(dim=-1)

    def _nearest(self, pairs: Tensor) -> Tensor:
        flat = pairs.flatten(0, 1)
        nearest = [torch.cdist(some, self.hops).argmin(1) for some in flat.split(_PAIRS_AT_ONCE)]
        return self.hops[torch.cat(nearest)].view_as(pairs)
