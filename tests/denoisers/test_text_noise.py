import itertools

import pytest
import torch

from lmdiff.denoisers.text_draws import (
    antithetic_draw,
    bernoulli_draw,
    block_draw,
    complementary_draw,
    coupled_draw,
    exact_k_draw,
    gauss_legendre_draw,
    mean_field_draw,
    random_ranks,
    segments_of,
    trace_draw,
)
from lmdiff.denoisers.text_noise import gauss_legendre, trace
from lmdiff.errors import UserError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def completion():
    """Prompts and completions of different lengths, padding on either side; one row has none."""
    rows = ["..###...", "...#####", "#.......", "........"]
    return torch.tensor([[letter == "#" for letter in row] for row in rows])


def one_length(n, batch=1):
    return torch.ones(batch, n, dtype=torch.bool)


DRAWS = {
    "exact-k": (lambda c, s, g: exact_k_draw(c, s, g), 1),
    "antithetic": (lambda c, s, g: antithetic_draw(c, s, g), 1),
    "bernoulli": (lambda c, s, g: bernoulli_draw(c, s, g), 1),
    "complementary": (lambda c, s, g: complementary_draw(c, s, g), 2),
    "coupled": (lambda c, s, g: coupled_draw(c, s, g), 3),
    "gauss-legendre": (lambda c, s, g: gauss_legendre_draw(c, s, g), 1),
    "mean-field": (lambda c, s, g: mean_field_draw(c, ~c, g, 0.0, s), 1),
    "blocks": (lambda c, s, g: block_draw(c, s, g, 2), 1),
}


@pytest.mark.parametrize("name", DRAWS)
def test_only_completion_tokens_are_masked_and_asked(name, completion):
    make, copies = DRAWS[name]
    for seed in range(20):
        draw = make(completion, 4, seeded(seed))
        assert draw.masks.shape == draw.weights.shape == (4 * copies, *completion.shape)
        assert not (draw.masks & ~completion).any()
        assert not (draw.weights != 0)[~draw.masks].any()  # only hidden tokens are asked for
        assert draw.weights.isfinite().all()
        if draw.shares is not None:
            assert draw.shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_decides(name, completion):
    make, _ = DRAWS[name]
    first, same, other = (make(completion, 4, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.masks, same.masks)
    assert torch.equal(first.weights, same.weights)
    if name != "mean-field":
        assert not torch.equal(first.masks, other.masks)


@pytest.mark.parametrize("name", [n for n in DRAWS if n != "gauss-legendre"])
def test_every_token_counts_once_on_average(name, completion):
    make, _ = DRAWS[name]
    weights = sum(make(completion, 2, seeded(seed)).weights.sum(0) for seed in range(2000)) / 2000
    once = 1.5 if name == "coupled" else 1.0  # as published: 1/2 and 2/2
    torch.testing.assert_close(weights, once * completion.float(), atol=0.12, rtol=0)


@pytest.mark.parametrize("samples", [1, 4])
def test_exact_k_is_uniform_in_size_and_place(samples):
    counts, places = torch.zeros(6), torch.zeros(5)
    for seed in range(3000):
        draw = exact_k_draw(one_length(5, 2), samples, seeded(seed))
        counts += torch.bincount(draw.masks.sum(-1).flatten(), minlength=6)
        places += draw.masks.sum((0, 1))
    assert counts[0] == 0
    torch.testing.assert_close(counts[1:] / counts.sum(), torch.full((5,), 0.2), atol=0.02, rtol=0)
    torch.testing.assert_close(places / places.sum(), torch.full((5,), 0.2), atol=0.01, rtol=0)


def test_exact_k_is_stratified():
    draw = exact_k_draw(one_length(8, 3), 8, seeded())
    assert draw.masks.sum(-1).sort(0).values.T.tolist() == [list(range(1, 9))] * 3


@pytest.mark.parametrize("batch", [1, 3, 8, 24])
def test_no_copy_masks_much_more_than_another(batch):
    """What one graph holds at its most grows with the tokens that a copy asks for."""
    single = exact_k_draw(one_length(128, batch), 1, seeded()).masks.sum((1, 2)).float()
    for samples in (2, 8, 16):
        totals = exact_k_draw(one_length(128, batch), samples, seeded()).masks.sum((1, 2))
        assert (totals.float().mean() / batch - 64.5).abs() < 128 / samples
        if batch > 1:
            assert totals.max() <= single * (1.1 if batch >= 8 else 1.7)


def test_a_single_sample_is_stratified_over_the_batch():
    draw = exact_k_draw(one_length(8, 8), 1, seeded())
    assert sorted(draw.masks.sum(-1)[0].tolist()) == list(range(1, 9))


def test_exact_k_weights():
    draw = exact_k_draw(one_length(6), 3, seeded())
    for mask, weights in zip(draw.masks[:, 0], draw.weights[:, 0], strict=True):
        assert weights[mask].tolist() == pytest.approx(
            [6 / mask.sum().item() / 3] * int(mask.sum())
        )


def test_antithetic_pairs_share_one_token():
    draw = antithetic_draw(one_length(7, 5), 4, seeded())
    first, second = draw.masks[:2], draw.masks[2:]
    assert (first & second).sum(-1).eq(1).all()
    assert (first | second).all()
    with pytest.raises(UserError, match="3 samples are odd"):
        antithetic_draw(one_length(3), 3, seeded())


def test_bernoulli_times():
    draw = bernoulli_draw(one_length(4000), 5, seeded())
    for mask, weights in zip(draw.masks[:, 0], draw.weights[:, 0], strict=True):
        t = 1 / (5 * weights[mask][0].item())
        assert mask.float().mean().item() == pytest.approx(t, abs=0.03)


def test_complementary_masks_every_token_once():
    draw = complementary_draw(one_length(6, 3), 2, seeded())
    assert (draw.masks[:2] ^ draw.masks[2:]).all()
    sizes = [
        complementary_draw(one_length(3), 1, seeded(seed)).masks[0].sum().item()
        for seed in range(400)
    ]
    assert [sizes.count(k) / 400 for k in range(4)] == pytest.approx([0.25] * 4, abs=0.08)


def test_coupled_covers_every_token_twice(completion):
    draw = coupled_draw(completion, 1, seeded())
    assert torch.equal(draw.masks.sum(0), 2 * completion)
    half = torch.where(completion, 0.5, 0.0)
    torch.testing.assert_close(draw.weights[0], half)
    # Views of 1/t and 1/(1 - t), with t in [0.2, 0.8): the weights are 1/2 of that.
    rates = 0.5 / draw.weights[1:][draw.weights[1:] > 0]
    assert rates.min() >= 0.2 - 1e-6
    assert rates.max() <= 0.8 + 1e-6
    assert draw.shares is None


def test_gauss_legendre_is_exact_for_polynomials():
    """Three nodes integrate degree 5: here of t^2 (the length makes t n whole enough)."""
    n = 100_000
    draw = gauss_legendre(torch.arange(n).expand(3, 1, n), 3, one_length(n))
    assert draw.shares is not None
    times = draw.masks.float().mean(-1)[:, 0]
    assert (draw.shares * times**2).sum().item() == pytest.approx(1 / 3, abs=1e-4)
    assert (draw.shares * times**5).sum().item() == pytest.approx(1 / 6, abs=1e-4)
    assert draw.weights.sum().item() == pytest.approx(n, rel=1e-4)


def test_gauss_legendre_has_no_empty_mask():
    draw = gauss_legendre_draw(one_length(2, 4), 5, seeded(), repeats=2)
    assert len(draw) == 10
    assert draw.masks.any(-1).all()


def test_mean_field_hides_some_of_the_prompt():
    completion = torch.zeros(64, 40, dtype=torch.bool)
    completion[:, 30:] = True
    prompt = torch.zeros_like(completion)
    prompt[:, 10:30] = True
    draw = mean_field_draw(completion, prompt, seeded())
    assert draw.masks[0][completion].all()
    assert draw.masks[0][prompt].float().mean().item() == pytest.approx(0.15, abs=0.02)
    assert not draw.masks[0][:, :10].any()
    assert torch.equal(draw.weights[0] != 0, completion)


def test_blocks_hide_what_is_later_and_show_what_is_earlier():
    completion = torch.zeros(1, 9, dtype=torch.bool)
    completion[:, 2:] = True  # blocks of 3, 3 and 1
    seen = set()
    for seed in range(200):
        draw = block_draw(completion, 1, seeded(seed), 3)
        asked = draw.weights[0, 0] != 0
        block = (int(asked.nonzero()[0]) - 2) // 3
        start, end = 2 + 3 * block, min(5 + 3 * block, 9)
        assert asked[start:end].sum() == asked.sum() > 0
        assert not draw.masks[0, 0, :start].any()
        assert draw.masks[0, 0, end:].all()
        size = (end - start) / asked.sum().item()
        assert draw.weights[0, 0][asked].tolist() == pytest.approx([3 * size] * int(asked.sum()))
        seen.add(block)
    assert seen == {0, 1, 2}


def test_trace_follows_the_steps():
    completion = torch.tensor([[False, True, True, True, True]])
    steps = torch.tensor([[0, 1, 0, 2, 1]])
    draw = trace_draw(completion, steps, 8, seeded())
    assert draw.masks.int().tolist() == [[[0, 1, 1, 1, 1]], [[0, 1, 0, 1, 1]], [[0, 0, 0, 1, 0]]]
    assert draw.weights.int().tolist() == [[[0, 0, 1, 0, 0]], [[0, 1, 0, 0, 1]], [[0, 0, 0, 1, 0]]]
    assert draw.shares is None


def test_trace_merges_steps():
    completion = one_length(8, 2)
    steps = torch.stack([torch.arange(8), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])])
    segments = segments_of(steps, completion, 2)
    assert segments.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 2
    # A row of fewer steps than segments keeps them.
    assert segments_of(steps, completion, 4).tolist()[1] == steps[1].tolist()
    one = trace_draw(completion, steps, 1, seeded())
    assert len(one) == 1
    assert one.masks.all()


def test_some_segments_stand_for_all():
    completion = one_length(6, 1)
    segment = torch.arange(6)[None]
    subsets = list(itertools.combinations(range(6), 2))
    weights = [trace(segment, completion, torch.tensor(kept)).weights.sum(0) for kept in subsets]
    torch.testing.assert_close(torch.stack(weights).mean(0), torch.ones(1, 6))
    drawn = trace_draw(completion, segment, 6, seeded(), kept=2)
    assert len(drawn) == 2


def test_random_ranks_are_a_uniform_order(completion):
    ranks = random_ranks(completion, 5, seeded())
    for row in range(len(completion)):
        n = int(completion[row].sum())
        assert torch.equal(
            ranks[:, row, completion[row]].sort(-1).values, torch.arange(n).expand(5, n)
        )
    orders = {
        tuple(random_ranks(one_length(3), 1, seeded(seed))[0, 0].tolist()) for seed in range(100)
    }
    assert len(orders) == 6


def test_rows_of_a_draw(completion):
    draw = exact_k_draw(completion, 3, seeded())
    part = draw.rows([2, 0])
    assert torch.equal(part.masks, draw.masks[:, [2, 0]])
    assert torch.equal(part.weights, draw.weights[:, [2, 0]])
    assert part.shares is draw.shares
