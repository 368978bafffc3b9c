"""Identities of masked diffusion, by enumeration: three letters, three places, all masks."""

import itertools

import pytest
import torch
from tabular_text import LENGTH, MASK, ORDERS, batch, denoiser, every_text, table_of

from lmdiff.algos.likelihood import (
    evidence_upper,
    sample_estimates,
    sequence_estimates,
    token_estimates,
)
from lmdiff.denoisers.text_models import token_logits
from lmdiff.denoisers.text_noise import (
    TextDraw,
    bernoulli,
    blocks,
    complementary,
    exact_k,
    gauss_legendre,
    mean_field,
    trace,
)
from lmdiff.errors import UserError

EXACT = {"atol": 1e-6, "rtol": 0}


def in_double(draw):
    shares = None if draw.shares is None else draw.shares.double()
    return TextDraw(draw.masks, draw.weights.double(), shares)


def all_exact_k(x):
    """Every order and every k in 1..L, once each."""
    pairs = list(itertools.product(ORDERS, range(1, LENGTH + 1)))
    ranks = torch.stack([order for order, _ in pairs])[:, None].expand(-1, len(x.ids), -1)
    k = torch.tensor([k for _, k in pairs])[:, None].expand(-1, len(x.ids))
    return in_double(exact_k(ranks, k, x.completion_mask))


def elbo(model, x):
    draw = all_exact_k(x)
    return sequence_estimates(table_of(model, x, draw), draw)


def trajectory_log_probs(model, x):
    """[6, B] log-probability of writing the text one token at a time, in each order."""
    values = []
    for order in ORDERS:
        draw = in_double(trace(order.expand(len(x.ids), -1), x.completion_mask))
        values.append(sequence_estimates(table_of(model, x, draw), draw))
    return torch.stack(values)


def log_likelihood(model, x):
    """[B] of the sampler that writes one token at a time in a random order."""
    return trajectory_log_probs(model, x).logsumexp(0) - torch.tensor(6.0).double().log()


@pytest.fixture
def x():
    return every_text()


@pytest.fixture
def model():
    return denoiser(3)


def test_the_likelihood_is_one(model, x):
    torch.testing.assert_close(
        log_likelihood(model, x).exp().sum(), torch.tensor(1.0).double(), **EXACT
    )


def test_the_elbo_from_first_principles(model):
    """(a) against the formula spelt out over subsets, with no code in common but the logits."""
    text = batch([[2, 0, 1]])
    total = 0.0
    for size in range(1, LENGTH + 1):
        subsets = list(itertools.combinations(range(LENGTH), size))
        for subset in subsets:
            seen = text.ids.clone()
            seen[0, list(subset)] = MASK
            logits = token_logits(model.model, model.spec, seen, text.attention_mask)
            log_probs = logits.log_softmax(-1)[0]
            said = sum(log_probs[i, text.ids[0, i]].item() for i in subset)
            total += LENGTH / size * said / len(subsets) / LENGTH
    assert elbo(model, text).item() == pytest.approx(total, abs=1e-6)


def test_form_b_bernoulli(model, x):
    """t uniform, Bernoulli masks, weight 1/t: the integral over t is a polynomial of degree 2."""
    nodes = torch.tensor([0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5]).double()
    quadrature = torch.tensor([5, 8, 5]).double() / 18
    expected = 0.0
    for t, weight in zip(nodes, quadrature, strict=True):
        for hidden in itertools.product([True, False], repeat=LENGTH):
            uniform = torch.where(torch.tensor(hidden), 0.0, 0.9999).expand(1, len(x.ids), -1)
            draw = in_double(bernoulli(uniform, t.expand(1, len(x.ids)), x.completion_mask))
            chance = torch.where(torch.tensor(hidden), t, 1 - t).prod()
            expected = expected + weight * chance * sequence_estimates(
                table_of(model, x, draw), draw
            )
    torch.testing.assert_close(expected, elbo(model, x), **EXACT)


def test_form_c_complementary(model, x):
    pairs = list(itertools.product(ORDERS, range(LENGTH + 1)))
    ranks = torch.stack([order for order, _ in pairs])[:, None].expand(-1, len(x.ids), -1)
    k = torch.tensor([k for _, k in pairs])[:, None].expand(-1, len(x.ids))
    draw = in_double(complementary(ranks, k, x.completion_mask))
    table = table_of(model, x, draw)
    torch.testing.assert_close(sequence_estimates(table, draw), elbo(model, x), **EXACT)
    # Each half of the pair is unbiased by itself.
    each = sample_estimates(table, draw)
    torch.testing.assert_close(each[: len(pairs)].mean(0), elbo(model, x), **EXACT)
    torch.testing.assert_close(each[len(pairs) :].mean(0), elbo(model, x), **EXACT)


def test_form_d_trajectories(model, x):
    torch.testing.assert_close(trajectory_log_probs(model, x).mean(0), elbo(model, x), **EXACT)


def test_antithetic_pairs_are_unbiased(model, x):
    pairs = list(itertools.product(ORDERS, range(1, LENGTH + 1)))
    ranks = torch.stack([LENGTH - 1 - order for order, _ in pairs])[:, None]
    k = torch.tensor([LENGTH + 1 - k for _, k in pairs])[:, None].expand(-1, len(x.ids))
    draw = in_double(exact_k(ranks.expand(-1, len(x.ids), -1), k, x.completion_mask))
    torch.testing.assert_close(
        sequence_estimates(table_of(model, x, draw), draw), elbo(model, x), **EXACT
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_elbo_bounds_the_likelihood(seed, x):
    model = denoiser(seed, 2.0)
    assert (elbo(model, x) <= log_likelihood(model, x) + 1e-9).all()


def test_blocks_are_the_elbo_of_writing_block_after_block(model, x):
    """Blocks of 2 and 1: the first by its own ELBO, the rest hidden, then the last, exactly."""
    block = torch.tensor([0, 0, 1]).expand(len(x.ids), -1)
    choices = []
    for which, k, order in [(0, k, o) for k in (1, 2) for o in ([0, 1, 9], [1, 0, 9])] + [
        (1, 1, [9, 9, 0])
    ] * 4:
        size = torch.full((1, len(x.ids)), which)
        ranks = torch.tensor(order).expand(1, len(x.ids), -1)
        choices.append(blocks(ranks, torch.full_like(size, k), size, block, x.completion_mask))
    draws = [in_double(draw) for draw in choices]
    estimate = sum(sequence_estimates(table_of(model, x, d), d) for d in draws) / len(draws)

    def trajectory(order):
        draw = in_double(trace(torch.tensor(order).expand(len(x.ids), -1), x.completion_mask))
        return sequence_estimates(table_of(model, x, draw), draw)

    by_orders = (trajectory([0, 1, 2]) + trajectory([1, 0, 2])) / 2
    torch.testing.assert_close(estimate, by_orders, **EXACT)


def test_one_segment_is_the_mean_field(model, x):
    none = torch.zeros(1, *x.ids.shape, dtype=torch.bool)
    view = in_double(mean_field(none, x.completion_mask))
    single = in_double(trace(torch.zeros_like(x.ids), x.completion_mask))
    torch.testing.assert_close(
        sequence_estimates(table_of(model, x, view), view),
        sequence_estimates(table_of(model, x, single), single),
    )


def test_estimates_agree_with_each_other(model, x):
    draw = in_double(
        gauss_legendre(ORDERS[[0, 3, 4]][:, None].expand(-1, 27, -1), 3, x.completion_mask)
    )
    table = table_of(model, x, draw)
    whole = sequence_estimates(table, draw)
    torch.testing.assert_close(token_estimates(table, draw).sum(-1), whole)
    assert draw.shares is not None
    torch.testing.assert_close((draw.shares[:, None] * sample_estimates(table, draw)).sum(0), whole)
    with pytest.raises(UserError, match="parts of one estimate"):
        sample_estimates(table, TextDraw(draw.masks, draw.weights))


def eubo(model, x, beta):
    draw = all_exact_k(x)
    return evidence_upper(table_of(model, x, draw), draw, x.lengths, beta)


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0, 3.0])
def test_the_eubo_is_above_the_elbo(beta, x):
    for seed in range(20):
        model = denoiser(seed, 2.0)
        assert (eubo(model, x, beta) >= elbo(model, x) - 1e-9).all()


def test_the_eubo_is_no_bound_below_beta_of_the_length(x):
    """As documented: a surrogate for beta < L, a bound from beta = L on."""
    below = dict.fromkeys((1.0, 2.0, 3.0), 0)
    for seed in range(60):
        model = denoiser(seed, 2.0)
        likelihood = log_likelihood(model, x)
        for beta in below:
            below[beta] += int((eubo(model, x, beta) < likelihood - 1e-9).sum())
    assert below[1.0] > below[2.0] > 0
    assert below[3.0] == 0


def test_the_eubo_by_hand(model):
    text = batch([[2, 0, 1]])
    beta, total = 1.5, 0.0
    for i in range(LENGTH):
        mean = 0.0
        for size in range(1, LENGTH + 1):
            subsets = list(itertools.combinations(range(LENGTH), size))
            for subset in subsets:
                seen = text.ids.clone()
                seen[0, list(subset)] = MASK
                logits = token_logits(model.model, model.spec, seen, text.attention_mask)
                p = logits.softmax(-1)[0, i, text.ids[0, i]]
                mean += (i in subset) * LENGTH / size * p**beta / len(subsets) / LENGTH
        total += mean.log() / beta
    torch.testing.assert_close(eubo(model, text, beta), total[None], **EXACT)


def test_the_eubo_of_few_masks(model, x):
    """Tokens that no copy masks are estimated by the others; gradients stay finite."""
    ranks = torch.tensor([0, 1, 2]).expand(1, 27, -1)
    draw = in_double(exact_k(ranks, torch.full((1, 27), 2), x.completion_mask))
    table = table_of(model, x, draw)
    value = evidence_upper(table, draw, x.lengths, 2.0)
    logs = (draw.weights[0, :, :2].log() + 2.0 * table[0, :, :2]) / 2.0
    torch.testing.assert_close(value, 1.5 * logs.sum(-1))
    value.sum().backward()
    assert model.model.table.grad.isfinite().all()
    assert model.model.table.grad.any()
