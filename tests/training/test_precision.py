"""fp32 stays fp32 whichever library multiplies, and the switch is put back."""

import torch

from lmdiff.training.precision import fast_bf16, fast_fp32

CPU = torch.device("cpu")


def _error() -> float:
    """Largest error of a product, by its largest number: fp32 makes 1e-6 of it, bf16 1e-3."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(256, 512, generator=generator), torch.randn(512, 512, generator=generator)
    exact = a.double() @ b.double()
    return ((a @ b - exact).abs().max() / exact.abs().max()).item()


def test_products_keep_the_accuracy_of_fp32():
    with fast_fp32(CPU):
        assert _error() < 1e-5


def test_the_switch_is_on_inside_alone():
    before = torch.get_float32_matmul_precision()
    switched = fast_bf16(CPU) and not torch.cpu._is_amx_tile_supported()
    with fast_fp32(CPU):
        assert torch.get_float32_matmul_precision() == ("medium" if switched else before)
    assert torch.get_float32_matmul_precision() == before


def test_with_tiles_for_bf16_nothing_is_switched(monkeypatch):
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
    before = torch.get_float32_matmul_precision()
    with fast_fp32(CPU):
        assert torch.get_float32_matmul_precision() == before
