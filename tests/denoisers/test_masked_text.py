import pytest
import torch

from lmdiff.denoisers.contract import Denoiser
from lmdiff.denoisers.masked_text import MaskedTextDenoiser, TextBatch
from lmdiff.denoisers.text_draws import complementary_draw
from lmdiff.denoisers.text_models import TextModelSpec, bert_model, token_logits
from lmdiff.denoisers.text_noise import TextDraw

V, MASK, PAD = 12, 10, 11


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    model = bert_model(V, PAD, max_length=32, hidden=16, layers=2, heads=2).double()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return MaskedTextDenoiser(model, TextModelSpec(MASK, PAD), samples=3)


def batch_of(rows, prompt, left=0, right=0):
    """Rows of equal length with padding around them; the first `prompt` tokens are the prompt."""
    rows = torch.tensor(rows)
    ids = torch.nn.functional.pad(rows, (left, right), value=PAD)
    attention = torch.nn.functional.pad(torch.ones_like(rows), (left, right)).bool()
    completion = attention.clone()
    completion[:, : left + prompt] = False
    return TextBatch(ids, attention, completion)


@pytest.fixture
def x():
    return batch_of([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]], prompt=2)


def test_it_fulfils_the_contract(denoiser, x):
    same: Denoiser[TextBatch, object, TextDraw] = denoiser
    draw = same.draw_noise(x, seeded())
    loss = same.loss(x, None, draw)
    assert loss.shape == (2,)
    assert torch.equal(loss, same.loss(x, None, draw))
    loss.sum().backward()
    assert denoiser.model.bert.embeddings.word_embeddings.weight.grad.any()


def test_the_loss_by_hand(denoiser, x):
    draw = denoiser.draw_noise(x, seeded())
    expected = torch.zeros(2, dtype=torch.float64)
    for mask, weights in zip(draw.masks, draw.weights, strict=True):
        seen = x.ids.masked_fill(mask, MASK)
        logits = token_logits(denoiser.model, denoiser.spec, seen, x.attention_mask)
        log_probs = logits.log_softmax(-1).gather(-1, x.ids[..., None])[..., 0]
        expected -= torch.where(weights > 0, weights * log_probs, 0.0).sum(-1)
    torch.testing.assert_close(denoiser.loss(x, None, draw), expected)
    tokens = denoiser.token_losses(x, draw)
    torch.testing.assert_close(tokens.sum(-1), expected)
    assert (tokens[~x.completion_mask] == 0).all()


def test_padding_changes_no_loss(denoiser, x):
    draw = denoiser.draw_noise(x, seeded())
    plain = denoiser.loss(x, None, draw)
    for left, right in [(4, 0), (0, 4), (2, 3)]:
        wide = batch_of(x.ids.tolist(), 2, left, right)
        wide_draw = TextDraw(
            torch.nn.functional.pad(draw.masks, (left, right)),
            torch.nn.functional.pad(draw.weights, (left, right)),
            draw.shares,
        )
        torch.testing.assert_close(denoiser.loss(wide, None, wide_draw), plain, atol=1e-9, rtol=0)


def test_a_uniform_model_says_log_v(x):
    """Every way to estimate gives L log(V - 1) for a model that knows nothing (but no masks)."""
    model = bert_model(V, PAD, max_length=32, hidden=8, layers=1, heads=1)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    denoiser = MaskedTextDenoiser(model, TextModelSpec(MASK, PAD), complementary_draw, 1)
    means = torch.zeros(2)
    for seed in range(300):
        means += denoiser.loss(x, None, denoiser.draw_noise(x, seeded(seed))).detach() / 300
    torch.testing.assert_close(
        means, torch.full((2,), 4 * torch.tensor(11.0).log().item()), rtol=0.1, atol=0
    )


def test_the_prompt_is_seen_and_hidden_tokens_are_not(denoiser, x):
    draw = denoiser.draw_noise(x, seeded())
    everything = TextDraw(x.completion_mask[None], x.completion_mask[None].float())
    other_prompt = x._replace(ids=x.ids.clone())
    other_prompt.ids[:, 0] = 7
    before, after = (denoiser.loss(some, None, draw) for some in (x, other_prompt))
    assert (before - after).abs().min() > 1e-6
    # What the first completion token is changes nothing for the others while it is hidden.
    other = x._replace(ids=x.ids.clone())
    other.ids[:, 2] = 7
    first, second = (denoiser.token_losses(some, everything) for some in (x, other))
    torch.testing.assert_close(first[:, 3:], second[:, 3:])
    assert (first[:, 2] - second[:, 2]).abs().min() > 1e-6


def test_it_learns(x):
    torch.manual_seed(0)
    model = bert_model(V, PAD, max_length=32, hidden=32, layers=2, heads=2)
    denoiser = MaskedTextDenoiser(model, TextModelSpec(MASK, PAD), samples=2)
    optimizer = torch.optim.Adam(denoiser.parameters(), 5e-3)
    generator = seeded()
    losses = []
    for _ in range(130):
        loss = denoiser.loss(x, None, denoiser.draw_noise(x, generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 8
    assert sum(losses[-5:]) / 5 < 0.5


def test_sample_hands_over_to_the_pipeline(denoiser, x):
    def generate(model, spec, prompts, steps):
        assert model is denoiser.model
        assert spec is denoiser.spec
        return prompts._replace(ids=prompts.ids + steps)

    assert torch.equal(denoiser.sample(x, generate, steps=1).ids, x.ids + 1)


def test_rows_and_lengths(x):
    assert x.lengths.tolist() == [4, 4]
    assert torch.equal(x.rows([1]).ids, x.ids[1:])
