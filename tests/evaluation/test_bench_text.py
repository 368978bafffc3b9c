"""The benches of text RL at their smallest: what is compared is the same computation."""

import pytest
import torch

from lmdiff.algos.policy_loss import OBJECTIVES
from lmdiff.denoisers.masked_text import MaskedTextDenoiser
from lmdiff.denoisers.text_models import bert_model, bert_spec
from lmdiff.errors import UserError
from lmdiff.evaluation import bench_memory, bench_text
from lmdiff.evaluation.bench_generate import Calls, generate_speed, generate_sudoku
from lmdiff.evaluation.bench_memory import WAYS, measure, text_memory
from lmdiff.evaluation.bench_text import MASK, Size, cases, in_turn, text_step
from lmdiff.pipelines.text_pipeline import TextPipeline
from lmdiff.text.tokenizer import SPECIAL, char_tokenizer

TINY = Size(hidden=16, layers=2, heads=2, vocabulary=40, batch=2, prompt=4, completion=16)


@pytest.fixture
def denoiser():
    model = TINY.model()
    return MaskedTextDenoiser(model, bert_spec(model, MASK))


def test_all_ways_have_the_peers_loss_and_gradient(denoiser):
    for _, losses in cases(denoiser, TINY):
        found = []
        for loss in losses.values():
            denoiser.zero_grad()
            value = loss()
            value.backward()
            grads = [p.grad for p in denoiser.parameters() if p.grad is not None]
            found.append((value.detach(), torch.cat([grad.flatten() for grad in grads])))
        (first, gradient), *others = found
        assert gradient.norm() > 1e-3
        for value, other in others:
            torch.testing.assert_close(value, first, atol=1e-5, rtol=0)
            torch.testing.assert_close(other, gradient, atol=1e-5, rtol=0)


def test_text_step():
    _, columns, rows = text_step(1, TINY)
    assert len(rows) == 2 * 3 * 3
    assert set(columns) <= set(rows[0])
    assert all(row["cpu"]["mean"] > 0 for row in rows)
    assert rows[0]["ratio"]["mean"] == 1


def test_ways_that_differ_are_not_timed(monkeypatch):
    monkeypatch.setattr(
        bench_text,
        "_d1_loss",
        lambda model, x, draw, advantages, epsilon: (
            2 * bench_text._all_log_probs(model, x, draw.masks[0]).mean()
        ),
    )
    with pytest.raises(UserError, match="differ"):
        text_step(1, TINY)


def test_in_turn():
    order = []
    times = in_turn([lambda: order.append("a"), lambda: order.append("b")], 2)
    assert order == ["a", "b"] * 3  # once to warm up
    assert [len(seconds.wall) for seconds in times] == [2, 2]


def test_a_fresh_process_says_its_peak():
    found = bench_memory._fresh_process(TINY, "bgpo", "elbo", "recomputed", 2)
    assert 100 < found["start"] <= found["peak"] < 4000
    with pytest.raises(UserError, match="--way magic"):
        bench_memory._fresh_process(TINY, "bgpo", "elbo", "magic", 2)


def test_text_memory(monkeypatch):
    monkeypatch.setattr(
        bench_memory, "_fresh_process", lambda *words: {"peak": 10.0 * words[-1], "start": 5.0}
    )
    _, columns, rows = text_memory(TINY)
    assert [row["way"] for row in rows] == ["recomputed"] * len(OBJECTIVES) + list(WAYS[1:])
    assert set(columns) == set(rows[0])
    assert (rows[0]["samples_1"], rows[0]["samples_16"], rows[0]["ratio"]) == (10.0, 160.0, 16.0)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_makes_an_update(way):
    found = measure(TINY, "preference", "elbo", way, 2)
    assert found["peak"] >= found["start"] > 50


def test_speed_of_generation():
    _, columns, rows = generate_speed(1, TINY)
    assert set(columns) <= set(rows[0])
    assert [row["forwards"] for row in rows] == [8, 8, 8, 8, 9]  # the last: the prompt, once
    assert all(row["tokens"]["mean"] > 0 for row in rows)


def test_quality_of_generation():
    tokenizer = char_tokenizer("01234")
    model = bert_model(len(tokenizer), tokenizer.pad_token_id, 64, hidden=16, layers=1, heads=2)
    # An end token would end a row early.
    model.cls.predictions.bias.data[: len(SPECIAL)] = -1e4
    _, columns, rows = generate_sudoku(TextPipeline(model, tokenizer, task="sudoku"), 1, 3)
    assert set(columns) <= set(rows[0])
    assert all(row["solved"]["mean"] <= 1 for row in rows)
    assert rows[0]["forwards"] == rows[3]["forwards"] == 16
    with pytest.raises(UserError, match="Sudoku agent"):
        generate_sudoku(TextPipeline(model, tokenizer, task="countdown"), 1, 3)


def test_calls_are_counted_by_rows():
    model = TINY.model()
    calls = Calls(model)
    model(torch.ones(3, 4, dtype=torch.long))
    model(input_ids=torch.ones(2, 4, dtype=torch.long))
    calls.close()
    model(torch.ones(3, 4, dtype=torch.long))
    assert calls.rows == 5
