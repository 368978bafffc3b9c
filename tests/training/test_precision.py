"""fp32 stays fp32 whichever library multiplies, and the switch is put back."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from rank_policies import policy_config
from training_toy import Toy, batches, make_config

from lmdiff.training import run
from lmdiff.training.loop import train
from lmdiff.training.policy.agent import train_policy_agent
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


@pytest.fixture
def switched(monkeypatch):
    """A list that grows by one entry at each time that a training step switches."""
    times = []

    @contextmanager
    def counted(device):
        times.append(device)
        with fast_fp32(device):
            yield

    monkeypatch.setattr(run, "fast_fp32", counted)
    return times


@pytest.mark.parametrize(
    ("onednn", "precision", "times"), [(True, "no", 20), (False, "no", 0), (True, "bf16", 0)]
)
def test_training_switches_where_it_is_told_to_and_computes_in_fp32(
    tmp_path, switched, onednn, precision, times
):
    config = make_config(mixed_precision=precision)
    train(config, Toy(), batches, tmp_path, onednn=onednn, quiet=True)
    assert len(switched) == times


@pytest.mark.parametrize(("kind", "times"), [("mlp", 2), ("transformer", 0)])
def test_policies_of_large_layers_switch_and_transformers_do_not(
    line, tmp_path, switched, kind, times
):
    config = policy_config(max_steps=2, mixed_precision="no")
    network = replace(config.algorithm.network, kind=kind)
    config = replace(config, algorithm=replace(config.algorithm, network=network))
    train_policy_agent(config, tmp_path / "run", quiet=True)
    assert len(switched) == times
