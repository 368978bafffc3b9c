"""RL recipes by the commands that a person types: a start by SFT, RL on it, resume, run."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from lmdiff import cli
from lmdiff.config import load_agent
from lmdiff.errors import UserError
from lmdiff.text.config import TextAgentConfig
from lmdiff.training.checkpoints import latest_checkpoint
from lmdiff.training.metrics import read_metrics
from lmdiff.training.text import rl as text_rl
from lmdiff.training.text.agent import train_text_agent
from lmdiff.training.text.rl_agent import rl_config

SFT = (  # noqa: SIM905 (as it is typed)
    "--model.width 16 --model.layers 1 --model.heads 2 --task.examples 50 --training.max-steps 10 "
    "--training.batch-size 8 --quiet"
).split()
RL = (  # noqa: SIM905
    "--task.examples 50 --training.batch-size 8 --rl.num-generations 4 --rl.samples 2 "
    "--training.log-every 1 --training.checkpoint-every 2 --rl.num-iterations 2 --quiet"
).split()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with runs/start, a tiny agent that was taught for ten steps."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert cli.main(["train", "sudoku-sft", "--output", "runs/start", *SFT]) == 0
    return home


@pytest.fixture(autouse=True)
def at_home(home, monkeypatch):
    monkeypatch.chdir(home)


def rl(output, steps, *words):
    command = ["train", "sudoku-rl", "--init", "runs/start", "--output", f"runs/{output}"]
    return cli.main([*command, "--training.max-steps", str(steps), *RL, *words])


def test_from_sft_to_rl_and_on(home, capsys, monkeypatch):
    # Whole solutions are beyond a model that was taught for ten steps.
    cells = "--task.rewards", "sudoku"
    assert rl("whole", 6, *cells) == 0
    lines = read_metrics(home / "runs/whole/metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert 0 <= lines[-1]["rewards/sudoku/mean"] <= 1
    weights = latest_checkpoint(home / "runs/start").tensors["ema"]
    trained = latest_checkpoint(home / "runs/whole").tensors["module"]
    for name, weight in weights.items():  # of which it became another model
        assert not torch.equal(trained[name.replace("denoiser", "policy")], weight)
    # It was interrupted, and goes on by --resume alone.
    batch = text_rl.TextRLTrainer.batch

    def interrupted(trainer, number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(trainer, number)

    with monkeypatch.context() as patch:
        patch.setattr(text_rl.TextRLTrainer, "batch", interrupted)
        assert rl("cut", 6, *cells) == cli.INTERRUPTED
    assert latest_checkpoint(home / "runs/cut").step == 4
    assert cli.main(["train", "--resume", "runs/cut", "--quiet"]) == 0
    one, other = (latest_checkpoint(home / "runs" / name) for name in ("whole", "cut"))
    for group, tensors in one.tensors.items():
        assert all(torch.equal(t, other.tensors[group][name]) for name, t in tensors.items())
    capsys.readouterr()
    assert cli.main(["run", "runs/whole", "0034002013424210", "--json"]) in (0, 4)
    assert "success" in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_what_cannot_be_is_said_in_a_sentence(home, capsys):
    words = ["train", "sudoku-rl", "--output", "runs/none", *RL]
    assert cli.main(words) == 2
    assert "--init" in capsys.readouterr().err
    assert rl("none", 4, "--rl.objective", "token-ratio") == 2
    assert "token-ratio cannot use elbo-complementary" in capsys.readouterr().err
    assert rl("none", 3) == 2
    assert "choose 2" in capsys.readouterr().err
    assert not (home / "runs/none/run.json").exists()


@pytest.mark.parametrize("name", ["sudoku-rl", "countdown-rl"])
def test_shipped_recipes_are_the_careful_kind(name, tmp_path):
    config = load_agent(name)
    assert isinstance(config, TextAgentConfig)
    assert config.algorithm == "rl"
    args = rl_config(config, tmp_path)
    assert args.num_iterations == 1
    assert args.num_inference_steps is None
    assert args.threshold is not None
    assert args.threshold >= 0.9  # only what the model is sure of is written together
    assert args.per_device_train_batch_size == 16 * args.num_generations
    assert config.task.rewards == (f"{config.task.name}_solved",)
    start = load_agent(name.replace("-rl", "-sft"))
    assert isinstance(start, TextAgentConfig)
    # RL may ask more puzzles than were taught: it needs no answers to them.
    same = {"examples": config.task.examples, "rewards": config.task.rewards}
    assert replace(start.task, **same) == config.task
    assert start.sampling == config.sampling


def test_every_setting_of_training_reaches_the_trainer(tmp_path):
    config = load_agent("sudoku-rl")
    assert isinstance(config, TextAgentConfig)
    loop = text_rl.training_config(rl_config(config, tmp_path))
    assert loop == config.training


def test_a_task_without_rewards_is_refused(home, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1"}\n' * 30)
    words = ["--task.name", "file", "--task.source", str(rows)]
    with pytest.raises(UserError, match="no reward"):
        train_text_agent(_file_agent(str(rows)), tmp_path / "run", init=home / "runs/start/agent")
    assert rl("file", 2, *words, "--task.rewards") == 2


def _file_agent(source):
    from lmdiff.config import agent_from_dict

    task = {"name": "file", "source": source}
    values = {"kind": "text", "algorithm": "rl", "task": task, "training": {"batch_size": 8}}
    found = agent_from_dict(values)
    assert isinstance(found, TextAgentConfig)
    return found
