"""The RL trainer of text, on a model that learns a trivial reward in seconds."""

import json

import pytest
import torch

from lmdiff.denoisers.text_models import bert_model
from lmdiff.pipelines.text_pipeline import TextPipeline
from lmdiff.text.rl_config import TextRLConfig
from lmdiff.text.tokenizer import char_tokenizer
from lmdiff.training.metrics import read_metrics
from lmdiff.training.text_rl import TextRLTrainer

L = 6
ROWS = [{"prompt": text, "answer": text[0]} for text in ("12", "3", "31", "2213")]


def share_of_threes(prompts, completions, **columns):
    return [text.count("3") / L for text in completions]


def make_pipe(seed=0, **settings):
    torch.manual_seed(seed)
    tokenizer = char_tokenizer("0123")
    model = bert_model(len(tokenizer), tokenizer.pad_token_id, 32, hidden=32, layers=1, heads=2)
    # The end of the text is as likely as any digit, so that lengths differ.
    return TextPipeline(model, tokenizer, **settings)


def make_args(tmp_path, **settings):
    defaults = {
        "output_dir": str(tmp_path / "run"),
        "max_completion_length": L,
        "max_steps": 4,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "samples": 2,
        "learning_rate": 1e-3,
        "logging_steps": 2,
        "save_steps": 2,
    }
    return TextRLConfig(**(defaults | settings))


def make_trainer(tmp_path, rewards=share_of_threes, **settings):
    return TextRLTrainer(make_pipe(), rewards, make_args(tmp_path, **settings), ROWS)


def lines(folder):
    return read_metrics(folder / "run" / "metrics.jsonl")


def test_the_reward_rises(tmp_path):
    trainer = make_trainer(
        tmp_path, max_steps=60, learning_rate=5e-3, per_device_train_batch_size=64
    )
    before = trainer.evaluate(ROWS)["reward"]
    trainer.train(quiet=True)
    found = lines(tmp_path)
    print([round(line["reward"],3) for line in found])
    assert found[0]["reward"] < 0.4 < 0.8 < found[-1]["reward"]
    assert trainer.evaluate(ROWS)["reward"] > max(0.9, before)
