import pytest
import torch

from lmdiff.algos.policy_objectives import (
    clipped_ratio,
    linear_bound,
    over_tokens,
    preference,
    sandwiched,
    weighted_likelihood,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def gradient(loss, of):
    return torch.autograd.grad(loss.sum(), of)[0]


def test_clipping_by_hand():
    ratios = torch.tensor([0.5, 1.0, 1.1, 2.0, 0.5, 1.0, 1.1, 2.0]).double()
    advantages = torch.tensor([1.0] * 4 + [-1.0] * 4).double()
    log_probs = ratios.log().requires_grad_()
    result = clipped_ratio(log_probs, torch.zeros(8).double(), advantages, 0.2, 0.3)
    expected = torch.tensor([-0.5, -1.0, -1.1, -1.3, 0.8, 1.0, 1.1, 2.0]).double()
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.ratio, ratios)
    # No gradient exactly where the objective is clipped.
    clipped = result.clipped_low | result.clipped_high
    assert clipped.tolist() == [False, False, False, True, True, False, False, False]
    slopes = gradient(result.loss, log_probs)
    torch.testing.assert_close(slopes, torch.where(clipped, 0.0, -advantages * ratios))


def test_two_sided_clipping():
    log_probs = torch.tensor([5.0, 5.0]).double().exp().log().requires_grad_()
    advantages = torch.tensor([-1.0, 1.0]).double()
    loss = clipped_ratio(log_probs, torch.zeros(2).double(), advantages, 0.2, delta=3.0).loss
    torch.testing.assert_close(loss, torch.tensor([3.0, -1.2]).double())
    assert not gradient(loss, log_probs).any()


def test_the_ratio_on_policy_is_the_policy_gradient():
    log_probs, advantages = normal(6).requires_grad_(), normal(6, seed=1)
    loss = clipped_ratio(log_probs, log_probs.detach(), advantages).loss
    torch.testing.assert_close(loss, -advantages)
    torch.testing.assert_close(gradient(loss, log_probs), -advantages)


def test_tokens_share_their_samples_advantage():
    log_probs, advantages = normal(3, 5), normal(3, seed=1)
    tokens = clipped_ratio(log_probs, torch.zeros(3, 5).double(), advantages).loss
    for token in range(5):
        alone = clipped_ratio(log_probs[:, token], torch.zeros(3).double(), advantages).loss
        torch.testing.assert_close(tokens[:, token], alone)


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("change", [-500.0, 500.0])
def test_a_wild_ratio_stays_finite(advantage, change):
    log_probs = torch.tensor([change]).requires_grad_()
    loss = clipped_ratio(log_probs, torch.zeros(1), torch.tensor([advantage])).loss
    assert loss.isfinite().all()
    assert gradient(loss, log_probs).isfinite().all()


def ratio_objective(log_probs, old, advantages, shares):
    """What BGPO bounds: -A exp(mean of d), without clipping."""
    return -advantages * (shares[:, None] * (log_probs - old)).sum(0).exp()


@pytest.mark.parametrize("shares", [None, torch.tensor([5.0, 8.0, 5.0]).double() / 18])
def test_bgpo_equals_the_ratio_objective_on_policy(shares):
    advantages = normal(7, seed=1)
    log_probs = normal(3, 7).requires_grad_()
    old = log_probs.detach()
    weights = torch.full((3,), 1 / 3).double() if shares is None else shares
    bound = linear_bound(log_probs, old, advantages, shares).sum(0)
    exact = ratio_objective(log_probs, old, advantages, weights)
    torch.testing.assert_close(bound, exact)
    torch.testing.assert_close(gradient(bound, log_probs), gradient(exact, log_probs))


@pytest.mark.parametrize("shares", [None, torch.tensor([5.0, 8.0, 5.0]).double() / 18])
@pytest.mark.parametrize("size", [0.01, 0.3, 3.0])
def test_bgpo_bounds_the_ratio_objective_off_policy(shares, size):
    advantages = normal(500, seed=1)
    old, change = normal(3, 500), size * normal(3, 500, seed=2)
    weights = torch.full((3,), 1 / 3).double() if shares is None else shares
    bound = -linear_bound(old + change, old, advantages, shares).sum(0)
    exact = -ratio_objective(old + change, old, advantages, weights)
    assert (bound <= exact + 1e-12).all()
    assert (bound < exact).float().mean() > 0.99


def test_bgpo_gradients_by_hand():
    advantages = torch.tensor([2.0, -3.0]).double()
    d = torch.tensor([[0.5, 0.5], [-1.5, -1.5]]).double().requires_grad_()
    slopes = gradient(linear_bound(d, torch.zeros(2, 2).double(), advantages), d)
    torch.testing.assert_close(slopes[:, 0], torch.full((2,), -1.0).double())  # -A / n
    torch.testing.assert_close(slopes[:, 1], 1.5 * d[:, 1].detach().exp())  # -A exp(d) / n


def test_bgpo_below_minus_one_and_far_above():
    """1 + d may be negative, and the other branch's exp(d) huge: no NaN comes of either."""
    d = torch.tensor([[-5.0, 900.0]]).requires_grad_()
    loss = linear_bound(d, torch.zeros(1, 2), torch.ones(2))
    assert loss.tolist() == [[4.0, -901.0]]
    assert gradient(loss, d).tolist() == [[-1.0, -1.0]]


def test_spg():
    advantages = torch.tensor([2.0, -2.0, 0.0]).double()
    elbo, eubo = normal(3).requires_grad_(), normal(3, seed=1).requires_grad_()
    loss = sandwiched(elbo, eubo, advantages, 0.25)
    mixed = 0.25 * eubo[1] + 0.75 * elbo[1]
    torch.testing.assert_close(loss, torch.stack([-2 * elbo[0], 2 * mixed, 0 * elbo[2]]))
    assert gradient(loss, eubo).tolist() == [0.0, 0.5, 0.0]


def test_spg_of_equal_estimates_is_the_policy_gradient():
    elbo, advantages = normal(6), normal(6, seed=1)
    torch.testing.assert_close(sandwiched(elbo, elbo, advantages), -advantages * elbo)


def test_wd1_is_zero_under_equal_rewards():
    log_probs = normal(8).requires_grad_()
    loss = weighted_likelihood(log_probs, torch.zeros(8).double(), 4, psi=2.0)
    assert (loss == 0).all()
    assert not gradient(loss, log_probs).any()


def test_wd1_by_hand():
    log_probs, advantages = normal(6), normal(6, seed=1)
    loss = weighted_likelihood(log_probs, advantages, 3, psi=0.7)
    groups = []
    for rows in (slice(0, 3), slice(3, 6)):
        up, down = (0.7 * advantages[rows]).exp(), (-0.7 * advantages[rows]).exp()
        groups.append(((down / down.sum() - up / up.sum()) * log_probs[rows]).sum())
    torch.testing.assert_close(loss.mean(), torch.stack(groups).mean())


def test_preference():
    chosen, rejected = normal(4).requires_grad_(), normal(4, seed=1).requires_grad_()
    fixed = normal(4, seed=2)
    loss = preference(chosen, fixed, rejected, fixed, beta=0.5)
    torch.testing.assert_close(loss, (1 + (-0.5 * (chosen - rejected)).exp()).log())
    assert (gradient(loss, chosen) < 0).all()
    same = preference(fixed, fixed, rejected.detach(), rejected.detach(), 3.0)
    torch.testing.assert_close(same, torch.full((4,), 2.0).double().log())


def test_over_tokens():
    losses = torch.arange(8.0).view(2, 4)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    sequence = over_tokens(losses, mask, "sequence")
    assert sequence.tolist() == [0.5, 5.5]
    assert over_tokens(losses, mask, "token").mean().item() == pytest.approx(23 / 6)
    assert over_tokens(losses, mask, "constant", 10).tolist() == pytest.approx([0.1, 2.2])
    nothing = over_tokens(losses, torch.zeros_like(mask), "token")
    assert nothing.tolist() == [0, 0]
