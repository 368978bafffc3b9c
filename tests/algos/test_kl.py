import pytest
import torch

from lmdiff.algos.kl import kl_estimate


@pytest.fixture
def logits():
    return torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)


REFERENCE = torch.tensor([0.0, 0.5, 0.2, -0.4], dtype=torch.float64).log_softmax(-1)


def expected(name, logits):
    """The mean over samples of the policy, which are held fixed when it is differentiated."""
    log_probs = logits.log_softmax(-1)
    return (log_probs.detach().exp() * kl_estimate(name, log_probs, REFERENCE)).sum()


def divergence(p, q):
    return (p.exp() * (p - q)).sum()


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_values_are_unbiased(name, logits):
    torch.testing.assert_close(
        expected(name, logits), divergence(logits.log_softmax(-1), REFERENCE)
    )


def test_k2_is_close_for_close_distributions():
    policy = (REFERENCE + 0.01 * torch.tensor([1.0, -1.0, 0.5, -0.5])).log_softmax(-1)
    value = (policy.exp() * kl_estimate("k2", policy, REFERENCE)).sum()
    assert value.item() == pytest.approx(divergence(policy, REFERENCE).item(), rel=0.02)


def test_gradients_are_as_documented(logits):
    """k2: of KL(policy || reference). k1: none. k3: of KL(reference || policy)."""
    found = {
        name: torch.autograd.grad(expected(name, logits), logits)[0] for name in ("k1", "k2", "k3")
    }
    forward = torch.autograd.grad(divergence(logits.log_softmax(-1), REFERENCE), logits)[0]
    reverse = torch.autograd.grad(divergence(REFERENCE, logits.log_softmax(-1)), logits)[0]
    torch.testing.assert_close(found["k1"], torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(found["k2"], forward)
    torch.testing.assert_close(found["k3"], reverse)


def test_k2_and_k3_are_never_negative():
    p, q = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).double()
    for name in ("k2", "k3"):
        assert (kl_estimate(name, p, q) >= 0).all()
        assert (kl_estimate(name, p, p) == 0).all()
