"""The normaliser: to zero mean and unit variance and back; saved with the model."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor


class Normalizer(ModelMixin, ConfigMixin):
    """Per-dimension affine map of vectors `[..., size]`; its numbers live in config.json."""

    @register_to_config
    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        # A constant dimension is left unscaled.
        scale = torch.tensor(std, dtype=torch.float32)
        self.register_buffer("offset", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.where(scale > 1e-6, scale, 1.0))

    @classmethod
    def fit(cls, values: Tensor) -> "Normalizer":
        """From samples `[N, size]`."""
        mean, std = values.mean(0), values.std(0)
        return cls(mean=mean.tolist(), std=std.tolist())

    def encode(self, values: Tensor) -> Tensor:
        """To normalised values."""
        return (values - self.offset) / self.scale

    def decode(self, values: Tensor) -> Tensor:
        """Back to the data's units."""
        return values * self.scale + self.offset

    def encode_part(self, values: Tensor) -> Tensor:
        """`encode` of the first dimensions alone (an observation of a window's vector)."""
        size = values.shape[-1]
        return (values - self.offset[:size]) / self.scale[:size]

    def decode_part(self, values: Tensor) -> Tensor:
        """`decode` of the first dimensions alone."""
        size = values.shape[-1]
        return values * self.scale[:size] + self.offset[:size]
