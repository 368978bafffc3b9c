"""Whether to compute in bf16: `auto` takes it where the processor has instructions for it.

And where fp32 is computed: by the faster of the two libraries that torch has for it on a CPU.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def fast_fp32(device: torch.device) -> Iterator[None]:
    """Inside, fp32 products of matrices by oneDNN, on CPUs with AVX-512 and bf16 but without AMX.

    torch takes MKL for them, which does not use AVX-512 on AMD's processors (`lmdiff bench
    policy-step` and `text-step` time both). The switch to oneDNN is called `medium` and allows it
    to round to bf16. It does so with AMX only; else it computes in fp32, in another order of the
    sum. Acting, of single rows, is left alone.
    """
    if device.type != "cpu" or not fast_bf16(device) or torch.cpu._is_amx_tile_supported():
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
