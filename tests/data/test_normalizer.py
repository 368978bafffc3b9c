"""The normaliser: unit variance and back, constants left alone, numbers in its config."""

from pathlib import Path

import torch

from lmdiff.data.normalizer import Normalizer


def _values() -> torch.Tensor:
    torch.manual_seed(0)
    values = torch.randn(500, 4) * torch.tensor([3.0, 0.01, 100.0, 0.0])
    return values + torch.tensor([5.0, -2.0, 0.0, 7.0])


def test_round_trip_and_a_constant_dimension() -> None:
    values = _values()
    normalizer = Normalizer.fit(values)
    encoded = normalizer.encode(values)
    torch.testing.assert_close(encoded.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(encoded.std(0), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(normalizer.decode(encoded), values, atol=1e-5, rtol=1e-5)
    assert float(normalizer.scale[3]) == 1.0  # unscaled: what is new there is not blown up
    torch.testing.assert_close(normalizer.encode(values + 1)[:, 3], torch.ones(500))


def test_it_is_saved_with_its_numbers(tmp_path: Path) -> None:
    values = _values()
    normalizer = Normalizer.fit(values)
    normalizer.save_pretrained(tmp_path)
    loaded = Normalizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(values), normalizer.encode(values))


def test_shapes_are_kept() -> None:
    normalizer = Normalizer.fit(_values())
    batch = torch.randn(2, 3, 5, 4)
    assert normalizer.encode(batch).shape == batch.shape
    torch.testing.assert_close(normalizer.encode(batch)[1, 2, 4], normalizer.encode(batch[1, 2, 4]))
