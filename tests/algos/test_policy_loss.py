"""Estimators and objectives put together, and the pairs that are refused."""

import math

import pytest
import torch
from tabular_text import batch, denoiser, table_of

from lmdiff.algos.likelihood import ESTIMATORS, DrawOptions, find_estimator, sequence_estimates
from lmdiff.algos.policy_loss import (
    PolicyConfig,
    check_policy,
    is_sum_over_samples,
    needs_old,
    needs_reference,
    policy_loss,
    sample_term,
)
from lmdiff.denoisers.masked_text import TextBatch
from lmdiff.denoisers.text_noise import TextDraw
from lmdiff.errors import UserError

S, B, L = 3, 4, 5
ADVANTAGES = torch.tensor([1.0, -1.0, 0.5, -2.0]).double()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture
def completion():
    return torch.arange(L) < torch.tensor([5, 3, 4, 1])[:, None]


@pytest.fixture
def x(completion):
    return TextBatch(torch.zeros(B, L, dtype=torch.long), completion, completion)


def setting(estimator, x, samples=S):
    steps = torch.arange(L).expand(B, L)
    options = DrawOptions(samples, block_length=2, segments=3, step_map=steps)
    draw = find_estimator(estimator).draw(x, options, torch.Generator().manual_seed(0))
    size = len(draw)
    draw = TextDraw(
        draw.masks,
        draw.weights.double(),
        None if draw.shares is None else draw.shares.double(),
    )
    table = -normal(size, B, L).abs() * (draw.weights != 0)
    return draw, table, table + 0.1 * normal(size, B, L, seed=1) * (draw.weights != 0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"estimator": "elbow"}, "No likelihood estimator"),
        ({"objective": "ppo"}, "No policy objective"),
        ({"estimator": "elbo", "objective": "token-ratio"}, "whole sequences"),
        ({"estimator": "gauss-legendre", "objective": "token-ratio"}, "whole sequences"),
        ({"estimator": "coupled", "objective": "bgpo"}, "parts of one estimate"),
        ({"estimator": "trace", "objective": "bgpo", "samples": 1}, "parts of one estimate"),
        ({"estimator": "mean-field", "objective": "spg"}, "needs an ELBO"),
        ({"estimator": "trace", "objective": "sequence-ratio", "samples": 4}, "samples = 1"),
        ({"estimator": "elbo-antithetic", "samples": 3}, "odd"),
        ({"samples": 0}, "one is the least"),
        ({"epsilon": 1.0}, "below 1"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, says):
    with pytest.raises(UserError, match=says) as error:
        check_policy(PolicyConfig(**settings))
    assert str(error.value).count(". ") <= 1  # plain sentences


@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "mean-field", "objective": "token-ratio", "samples": 1},  # d1
        {"estimator": "coupled", "objective": "token-ratio", "samples": 1},  # DiffuCoder
        {"estimator": "elbo", "objective": "bgpo", "samples": 16},  # BGPO
        {"estimator": "elbo-complementary", "objective": "sequence-ratio", "samples": 2},  # ESPO
        {"estimator": "gauss-legendre", "objective": "sequence-ratio", "samples": 3},  # GDPO
        {"estimator": "elbo-blocks", "objective": "spg", "samples": 2},  # SPG
        {"estimator": "mean-field", "objective": "wd1", "samples": 1},  # wd1
        {"estimator": "elbo", "objective": "preference", "samples": 8},  # VRPO
        {"estimator": "trace", "objective": "token-ratio", "samples": 1},  # TraceRL, d2
    ],
)
def test_published_methods_are_pairs(settings):
    assert check_policy(PolicyConfig(**settings)) is ESTIMATORS[settings["estimator"]]


def test_espo_by_hand(x, completion):
    draw, table, old = setting("elbo-complementary", x)
    config = PolicyConfig(
        estimator="elbo-complementary", objective="sequence-ratio", samples=S, beta=0.3
    )
    reference = old + 0.05
    found = policy_loss(config, table, draw, ADVANTAGES, completion, old, reference)
    for row in range(B):
        length = int(completion[row].sum())
        now, before, fixed = (
            float((draw.weights[:, row] * part[:, row]).sum()) for part in (table, old, reference)
        )
        ratio, advantage = math.exp((now - before) / length), ADVANTAGES[row].item()
        clipped = min(max(ratio, 0.8), 1.2)
        expected = -min(ratio * advantage, clipped * advantage)
        expected += 0.3 * 0.5 * (now - fixed) ** 2 / length
        assert found.loss[row].item() == pytest.approx(expected)
        assert found.ratio[row].item() == pytest.approx(ratio)
        assert found.kl[row].item() == pytest.approx(0.5 * (now - fixed) ** 2 / length)


def test_diffu_grpo_by_hand(x, completion):
    draw, table, old = setting("mean-field", x, 1)
    config = PolicyConfig(
        estimator="mean-field", objective="token-ratio", samples=1, epsilon=0.05, beta=0.04, kl="k3"
    )
    reference = old - 0.02
    found = policy_loss(config, table, draw, ADVANTAGES, completion, old, reference)
    total = low = high = 0.0
    for row in range(B):
        for token in range(int(completion[row].sum())):
            now, before, fixed = (part[0, row, token] for part in (table, old, reference))
            ratio, advantage = (now - before).exp(), ADVANTAGES[row]
            total -= torch.minimum(ratio * advantage, ratio.clamp(0.95, 1.05) * advantage).item()
            d = (fixed - now).item()
            total += 0.04 * (math.exp(d) - d - 1)
            low += bool(ratio < 0.95 and advantage < 0) / int(completion[row].sum())
            high += bool(ratio > 1.05 and advantage > 0) / int(completion[row].sum())
    assert found.loss.mean().item() == pytest.approx(total / completion.sum().item())
    assert found.clipped_low.sum().item() == pytest.approx(low)
    assert found.clipped_high.sum().item() == pytest.approx(high)
    assert low > 0
    assert high > 0


@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize("estimator", ["elbo", "gauss-legendre"])
def test_bgpo_by_hand_and_one_sample_at_a_time(x, completion, estimator, divide):
    draw, table, old = setting(estimator, x)
    config = PolicyConfig(estimator=estimator, objective="bgpo", samples=S, divide_by_length=divide)
    found = policy_loss(config, table, draw, ADVANTAGES, completion, old).loss
    expected = torch.zeros(B).double()
    for j, share in enumerate(draw.shares):
        d = (draw.weights[j] * (table - old)[j]).sum(-1) / share
        if divide:
            d = d / completion.sum(-1)
        expected -= share * ADVANTAGES * torch.where(ADVANTAGES < 0, d.exp(), 1 + d)
    torch.testing.assert_close(found, expected)
    parts = [sample_term(config, table[j], j, draw, ADVANTAGES, completion, old) for j in range(S)]
    torch.testing.assert_close(torch.stack(parts).sum(0), found)


def test_on_policy_needs_no_old_table(x, completion):
    draw, table, _ = setting("elbo", x)
    for objective in ("sequence-ratio", "bgpo"):
        config = PolicyConfig(objective=objective, samples=S)
        leaf = table.clone().requires_grad_()
        with_old = policy_loss(config, leaf, draw, ADVANTAGES, completion, table)
        without = policy_loss(config, leaf, draw, ADVANTAGES, completion)
        torch.testing.assert_close(with_old.loss, without.loss)
        assert torch.autograd.grad(without.loss.sum(), leaf)[0].any()


def test_wd1_is_zero_under_equal_rewards(x, completion):
    draw, table, _ = setting("mean-field", x, 1)
    config = PolicyConfig(estimator="mean-field", objective="wd1", samples=1, group_size=2)
    assert (policy_loss(config, table, draw, torch.zeros(B), completion).loss == 0).all()
    unequal = policy_loss(config, table, draw, ADVANTAGES, completion).loss
    assert unequal.any()


def test_preference_takes_the_best_and_the_worst(x, completion):
    draw, table, reference = setting("elbo", x)
    config = PolicyConfig(objective="preference", samples=S, group_size=4, preference_beta=0.2)
    advantages = torch.tensor([0.1, -0.4, 0.7, -0.2]).double()
    leaf = table.clone().requires_grad_()
    loss = policy_loss(config, leaf, draw, advantages, completion, None, reference).loss
    margin = sequence_estimates(table, draw) - sequence_estimates(reference, draw)
    expected = torch.log1p((-0.2 * (margin[2] - margin[1])).exp())
    torch.testing.assert_close(loss.mean(), expected)
    slopes = torch.autograd.grad(loss.mean(), leaf)[0].sum((0, 2))
    assert slopes[2] < 0 < slopes[1]
    assert slopes[0] == slopes[3] == 0
    equal = policy_loss(config, table, draw, torch.zeros(B).double(), completion, None, reference)
    assert (equal.loss == 0).all()


def test_a_missing_reference_is_an_error(x, completion):
    draw, table, _ = setting("elbo", x)
    for settings in ({"beta": 0.1}, {"objective": "preference"}):
        config = PolicyConfig(samples=S, **settings)
        assert needs_reference(config)
        with pytest.raises(UserError, match="none was evaluated"):
            policy_loss(config, table, draw, ADVANTAGES, completion)


def test_what_each_needs():
    assert needs_old(PolicyConfig(objective="bgpo"))
    assert not needs_old(PolicyConfig(objective="wd1"))
    assert is_sum_over_samples(PolicyConfig(objective="bgpo"))
    assert not is_sum_over_samples(PolicyConfig(objective="bgpo", beta=0.1))
    assert not is_sum_over_samples(PolicyConfig(objective="sequence-ratio"))


def test_trace_asks_for_the_step_map(x):
    with pytest.raises(UserError, match="step map"):
        find_estimator("trace").draw(x, DrawOptions(1), torch.Generator())


@pytest.mark.parametrize(
    ("estimator", "objective"),
    [
        ("mean-field", "token-ratio"),
        ("coupled", "token-ratio"),
        ("elbo", "bgpo"),
        ("elbo-antithetic", "bgpo"),
        ("elbo-complementary", "sequence-ratio"),
        ("gauss-legendre", "sequence-ratio"),
        ("elbo-blocks", "spg"),
        ("elbo-bernoulli", "spg"),
        ("mean-field", "wd1"),
        ("elbo", "preference"),
        ("trace", "token-ratio"),
    ],
)
def test_every_method_raises_what_is_rewarded(estimator, objective):
    """A few steps on a table of free logits: the rewarded text becomes likelier, the other not."""
    model = denoiser(0, 0.1)
    reference = denoiser(0, 0.1)
    x = batch([[0, 1, 2], [2, 1, 0]])
    advantages = torch.tensor([1.0, -1.0]).double()
    samples = 1 if estimator == "trace" else 2
    config = PolicyConfig(
        estimator=estimator, objective=objective, samples=samples, group_size=2, wd1_psi=1.0
    )
    options = DrawOptions(samples, block_length=2, step_map=torch.tensor([[0, 1, 2], [2, 0, 1]]))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(40):
        draw = check_policy(config).draw(x, options, generator)
        with torch.no_grad():
            fixed = table_of(reference, x, draw)
        table = table_of(model, x, draw)
        kept = fixed if needs_reference(config) else None
        loss = policy_loss(config, table, draw, advantages, x.completion_mask, None, kept).loss
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    draw = check_policy(config).draw(x, options, generator)
    with torch.no_grad():
        change = sequence_estimates(table_of(model, x, draw) - table_of(reference, x, draw), draw)
    assert change[0] > 0.1
    assert change[1] < -0.1
