import json
from dataclasses import replace

import pytest
from line_world import SAYINGS, Line

from lmdiff.algos.config import AlgorithmConfig, NetworkConfig
from lmdiff.config import TrainingConfig
from lmdiff.data import demonstrations
from lmdiff.data.demonstrations import demonstrate
from lmdiff.data.recordings import joined
from lmdiff.errors import UserError
from lmdiff.evaluation import policy_language
from lmdiff.policy_config import ChunkConfig, PolicyAgentConfig, WorldConfig
from lmdiff.training.policy import agent as policy_agent
from lmdiff.training.policy import comparison as policy_comparison
from lmdiff.training.policy.comparison import Comparison

BASE = PolicyAgentConfig(
    name="line",
    world=WorldConfig(name="line", dataset="mixed", episodes=30, noise=0.5),
    chunks=ChunkConfig(horizon=2, execute=2),
    algorithm=AlgorithmConfig(network=NetworkConfig(width=32, layers=2)),
    training=TrainingConfig(max_steps=30, batch_size=32, learning_rate=3e-3, warmup_steps=2),
)


@pytest.fixture
def line(monkeypatch, tmp_path):
    prompts = tmp_path / "line.toml"
    prompts.write_text(SAYINGS, encoding="utf-8")
    monkeypatch.setattr(Line, "family", str(prompts))
    policy_language.world_of.cache_clear()

    def record(config, quiet=False):
        return joined([demonstrate(Line(), config, index) for index in range(config.episodes)])

    for module in (policy_agent, policy_language):
        monkeypatch.setattr(module, "make_world", Line)
    for module in (policy_agent, demonstrations):
        monkeypatch.setattr(module, "load_or_record", record)
    monkeypatch.setattr(policy_comparison, "load_agent", lambda name: BASE)
    yield
    policy_language.world_of.cache_clear()


def test_every_run_is_made_once_and_told(line, tmp_path, monkeypatch):
    output = tmp_path / "table.json"
    comparison = Comparison(
        algorithms=("bc",),
        seeds=(0, 1),
        denoising_steps=(1, 4),
        episodes=4,
        runs=tmp_path / "runs",
        output=output,
    )
    comparison.run()
    result = json.loads(output.read_text())
    assert [row["denoising_steps"] for row in result["rows"]] == [1, 4]
    row = result["rows"][0]
    assert row["success"]["low"] <= row["success"]["mean"] <= row["success"]["high"]
    assert 0 < row["recorded"]["mean"] <= 1
    assert len(row["each"].split(",")) == 2
    assert "--denoising-steps 1 4" in result["command"]

    def never(*_, **__):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(policy_comparison, "train_policy_agent", never)
    comparison.run()
    assert json.loads(output.read_text())["rows"] == result["rows"]


def test_seeds_have_recordings_of_their_own(line, tmp_path):
    comparison = Comparison(algorithms=("bc",), seeds=(0, 1), episodes=2, runs=tmp_path)
    replace(comparison, steps=5).run()
    told = [
        json.loads((tmp_path / f"line-bc-5-{seed}" / "run.json").read_text())["manifest"]["agent"]
        for seed in (0, 1)
    ]
    assert [agent["world"]["data_seed"] for agent in told] == [0, 1]
    assert [agent["training"]["seed"] for agent in told] == [0, 1]


def test_another_data_set_is_another_run(line, tmp_path):
    output = tmp_path / "table.json"
    comparison = Comparison(algorithms=("bc",), seeds=(0,), episodes=2, runs=tmp_path, steps=5)
    replace(comparison, dataset="expert", output=output).run()
    manifest = json.loads((tmp_path / "line-expert-bc-5-0" / "run.json").read_text())["manifest"]
    assert manifest["agent"]["world"]["dataset"] == "expert"
    assert "--dataset expert" in json.loads(output.read_text())["command"]


def test_only_policies_are_compared():
    with pytest.raises(UserError, match="no policy"):
        Comparison(agent="pointmaze-medium").run()
