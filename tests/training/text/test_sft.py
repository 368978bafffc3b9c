"""Supervised fine-tuning: what is masked, and that batches are functions of seed and shard."""

from dataclasses import replace

import pytest
import torch

from lmdiff.config import TrainingConfig
from lmdiff.errors import UserError
from lmdiff.pipelines.text_agents import make_text_model
from lmdiff.text.config import SFTConfig, TextAgentConfig, TextModelConfig
from lmdiff.text.tokenizer import decode_completion
from lmdiff.training.text.agent import stopping_at
from lmdiff.training.text.sft import Examples, SFTModule

TINY = TextModelConfig(width=16, layers=1, heads=2, max_length=32)
ROWS = [{"prompt": "1 2", "completion": "21"}, {"prompt": "12 1 2", "completion": "1"}]


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return make_text_model(TINY, "12 ")


def test_completions_are_masked_and_filled_with_the_end(parts):
    examples = Examples(parts, ROWS, 4, 32)
    batch = examples.collate(examples.texts)
    assert batch.ids.shape == (2, 7 + 4)
    assert batch.completion_mask.sum(1).tolist() == [4, 4]
    # Left padding: prompts end where they end when the text is sampled.
    assert batch.attention_mask.sum(1).tolist() == [8, 11]
    assert batch.completion_mask[:, -4:].all()
    end = parts.tokenizer.eos_token_id
    assert batch.ids[1, -3:].tolist() == [end] * 3
    assert decode_completion(parts.tokenizer, batch.ids[0, -4:].tolist()) == "21"
    assert (batch.ids[0, :3] == parts.spec.pad_id).all()


def test_pretraining_masks_prompts_too_and_needs_no_completion(parts):
    rows = [*ROWS, {"prompt": "2"}]
    examples = Examples(parts, rows, 4, 32, prompts_too=True)
    batch = examples.collate(examples.texts)
    assert torch.equal(batch.completion_mask, batch.attention_mask)
    with pytest.raises(UserError, match="Row 3 has no completion"):
        Examples(parts, rows, 4, 32)


def test_texts_that_do_not_fit_are_named(parts):
    with pytest.raises(UserError, match=r"Row 1: .*generation_length is 1"):
        Examples(parts, ROWS, 1, 32)
    with pytest.raises(UserError, match=r"Row 2 has 11 tokens .* can take 10"):
        Examples(parts, ROWS, 4, 10)


def test_batches_are_functions_of_seed_and_shard(parts):
    rows = [{"prompt": "1" * (1 + i % 5), "completion": "2" * (1 + i % 3)} for i in range(40)]
    examples = Examples(parts, rows, 4, 32)
    first = examples.batch(0, 3, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, examples.batch(0, 3, 8), strict=True))
    drawn = {tuple(examples.batch(s, n, 8).ids.flatten().tolist()) for s in (0, 1) for n in (0, 1)}
    assert len(drawn) == 4


@pytest.mark.parametrize("noise", ["exact_k", "antithetic", "bernoulli", "complementary"])
def test_the_loss_of_an_untrained_model_is_near_that_of_chance(parts, noise):
    module = SFTModule(parts, SFTConfig(noise=noise, samples=2))
    rows = [{"prompt": "1" * (1 + i % 5), "completion": "2" * (1 + i % 3)} for i in range(64)]
    examples = Examples(parts, rows, 4, 32)
    with torch.no_grad():
        losses = [
            module(examples.batch(0, i, 64), torch.Generator().manual_seed(i))["loss"]
            for i in range(8)
        ]
    # Fresh logits are almost even over the vocabulary without the mask token.
    chance = torch.tensor(len(parts.tokenizer) - 1.0).log()
    assert torch.stack(losses).mean() == pytest.approx(float(chance), rel=0.1)


def test_learning_lowers_the_loss(parts):
    module = SFTModule(parts, SFTConfig())
    examples = Examples(parts, ROWS, 4, 32)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    losses = []
    for step in range(60):
        loss = module(examples.batch(0, step, 16), torch.Generator().manual_seed(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])


def test_it_may_end_at_a_share_of_solved_prompts() -> None:
    recipe = TextAgentConfig(sft=SFTConfig(stop_at=0.3), training=TrainingConfig(evaluate_every=10))
    watch = stopping_at(recipe)
    assert watch is not None
    told = [("step", {}), ("log", {"loss": 1.0}), ("log", {"eval/solved": 0.29}), ("step", {})]
    assert not any(watch(event, 1, figures) for event, figures in told)
    assert not watch("log", 2, {"eval/solved": 0.3})  # the line is written first
    assert watch("step", 3, {})
    watch("log", 3, {"eval/solved": 0.1})
    assert watch("step", 4, {})
    assert stopping_at(replace(recipe, sft=SFTConfig())) is None
    with pytest.raises(UserError, match=r"evaluate-every"):
        stopping_at(replace(recipe, training=TrainingConfig(evaluate_every=0)))
