"""Whether to compute in bf16: `auto` takes it where the processor has instructions for it."""

import dataclasses

import torch

from lmdiff.config import TrainingConfig


def settled(config: TrainingConfig, device: torch.device) -> TrainingConfig:
    """The config with `mixed_precision = "auto"` settled for a device; others as they are."""
    if config.mixed_precision != "auto":
        return config
    return dataclasses.replace(config, mixed_precision="bf16" if fast_bf16(device) else "no")


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products are faster than fp32 there: elsewhere they are emulated, and slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
