"""Prompt states that are computed once give the numbers of the whole model."""

import pytest
import torch

from lmdiff.denoisers.masked_text import MaskedTextDenoiser, TextBatch
from lmdiff.denoisers.text_draws import exact_k_draw
from lmdiff.denoisers.text_models import (
    TextModelSpec,
    bert_model,
    bert_spec,
    check_text_model,
    llama_model,
    logits_at,
    token_logits,
)
from lmdiff.denoisers.text_prefix import PromptStates
from lmdiff.errors import UserError

V, MASK, PAD = 12, 10, 11
P, W = 5, 6


def build(family, head):
    torch.manual_seed(0)
    make = {"bert": bert_model, "llama": llama_model}[family]
    model = make(V, PAD, 64, hidden=16, layers=3, heads=2).double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    part = {"bert": bert_spec(model, MASK).head if family == "bert" else "", "llama": "lm_head"}
    return model, TextModelSpec(MASK, PAD, "prefix", head=part[family] if head else None)


@pytest.fixture
def batch():
    """Three rows; the prompts of the last two are shorter."""
    ids = torch.randint(0, 10, (3, P + W), generator=torch.Generator().manual_seed(1))
    ids[:, P + 1 : P + 5] = MASK
    mask = torch.ones(3, P + W, dtype=torch.bool)
    mask[1, :2] = False
    mask[2, :4] = False
    prompt = mask.clone()
    prompt[:, P:] = False
    return torch.where(mask, ids, PAD), mask, prompt


def closed_to_completions(model, spec, ids, mask, prompt):
    """Whether the prompt's logits stay as the completion changes."""
    other = ids.clone()
    other[:, P:] = (other[:, P:] + 1) % 10
    first, second = (token_logits(model, spec, x, mask, prompt).softmax(-1) for x in (ids, other))
    assert (first - second)[:, P:].abs().max() > 1e-3
    return torch.allclose(first[prompt], second[prompt], atol=1e-12)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_prompt_does_not_see_the_completion(family, batch):
    model, spec = build(family, head=False)
    assert closed_to_completions(model, spec, *batch)
    assert not closed_to_completions(model, TextModelSpec(MASK, PAD, "full4d"), *batch)
    ids, mask, prompt = batch
    other = ids.clone()
    other[:, P - 1] = (other[:, P - 1] + 1) % 10  # the completion sees the prompt
    first, second = (token_logits(model, spec, x, mask, prompt).softmax(-1) for x in (ids, other))
    assert (first - second)[:, P:].abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("head", [False, True])
def test_reuse_is_exact(family, head, batch):
    model, spec = build(family, head)
    ids, mask, prompt = batch
    states = PromptStates(model, spec, ids[:, :P], mask[:, :P])
    for rows in ([0, 1, 2], [2, 0], [1]):
        rows = torch.tensor(rows)
        for end in (P + W, P + 5):  # later blocks may be hidden
            seen, where = mask[rows, :end], (ids == MASK)[rows, :end]
            arguments = ids[rows, :end], seen, where
            whole = logits_at(model, spec, *arguments, prompt[rows, :end])
            torch.testing.assert_close(states(*arguments, rows), whole, atol=1e-10, rtol=0)


def test_without_a_prompt(batch):
    model, spec = build("bert", head=False)
    ids, mask = batch[0][:1, P:], batch[1][:1, P:]
    states = PromptStates(model, spec, ids[:, :0], mask[:, :0])
    where = ids == MASK
    whole = logits_at(model, spec, ids, mask, where, torch.zeros_like(mask))
    torch.testing.assert_close(states(ids, mask, where, torch.tensor([0])), whole)


def test_training_has_the_same_attention(batch):
    model, spec = build("llama", head=True)
    ids, mask, prompt = batch
    x = TextBatch(torch.where(ids == MASK, 3, ids), mask, mask & ~prompt)
    draw = exact_k_draw(x.completion_mask, 1, torch.Generator().manual_seed(0))
    log_probs = MaskedTextDenoiser(model, spec).log_probs(x, draw, 0)
    seen = torch.where(draw.masks[0], MASK, x.ids)
    logits = token_logits(model, spec, seen, mask, prompt).log_softmax(-1)
    expected = logits.gather(-1, x.ids[..., None])[..., 0]
    torch.testing.assert_close(log_probs[draw.masks[0]], expected[draw.masks[0]])


def test_what_cannot_be():
    model, spec = build("bert", head=False)
    ids = torch.ones(1, 4, dtype=torch.long)
    check_text_model(model, spec, V)
    with pytest.raises(UserError, match="which tokens are the prompt"):
        token_logits(model, spec, ids, ids)
    with pytest.raises(UserError, match="Use full4d"):
        TextModelSpec(MASK, PAD, "prefix", shifted=True)
    with pytest.raises(UserError, match="only prefix has"):
        PromptStates(model, TextModelSpec(MASK, PAD), ids, ids.bool())
