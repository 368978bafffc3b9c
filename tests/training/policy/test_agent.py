import dataclasses
import json
from typing import get_args

import numpy as np
import pytest
import torch
from line_world import FAULTS, Line, break_line

from lmdiff.algos.config import AlgorithmConfig, AlgorithmName, NetworkConfig, QCConfig
from lmdiff.config import TrainingConfig, agent_from_dict
from lmdiff.errors import EnvironmentFault, GoalNotUnderstood, UserError
from lmdiff.evaluation import policy_commands, policy_language
from lmdiff.evaluation.agents import load_policy
from lmdiff.goals.sayings import load_sayings
from lmdiff.policy_config import ChunkConfig, PolicyAgentConfig, WorldConfig
from lmdiff.training.policy import agent as policy_agent
from lmdiff.training.policy.agent import train_policy_agent
from lmdiff.verbs import Eval, Run


def config(**training):
    return PolicyAgentConfig(
        name="line",
        world=WorldConfig(name="line", episodes=40, noise=0.3),
        chunks=ChunkConfig(horizon=2, execute=1),
        algorithm=AlgorithmConfig(name="bc", network=NetworkConfig(width=64, layers=2)),
        training=TrainingConfig(
            **{"max_steps": 120, "batch_size": 64, "learning_rate": 3e-3, "warmup_steps": 5}
            | {"ema_decay": 0.9, "log_every": 20, "checkpoint_every": 60}
            | training
        ),
    )


@pytest.fixture(scope="module")
def trained(line, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    train_policy_agent(config(evaluate_every=120), run, quiet=True)
    return run


def test_a_policy_learns_what_words_ask_and_is_measured(trained, capsys, tmp_path):
    output = tmp_path / "rows.json"
    command = Eval(str(trained), episodes=20, json=True, steps="1,10", output=output)
    assert policy_commands.evaluate_policy(command) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    language = report["language"]
    assert language["true"]["mean"] >= 0.9
    assert language["swap"]["does_told"]["mean"] >= 0.9
    assert language["swap"]["does_other"]["mean"] <= 0.1
    assert language["other_words"]["mean"] <= 0.1
    assert [row["steps"] for row in report["few_steps"]] == [1, 10]
    assert report["few_steps"][1]["success"]["mean"] >= 0.9
    assert report["few_steps"][0]["milliseconds"] < report["few_steps"][1]["milliseconds"]
    assert (trained / "few-steps.png").read_bytes()[1:4] == b"PNG"
    beside = json.loads((tmp_path / "rows-steps.json").read_text())["rows"]
    assert [row["steps"] for row in beside] == [1, 10]
    row = json.loads(output.read_text())["rows"][0]
    assert row["agent"] == "line"
    assert row["swap_does_told"] == language["swap"]["does_told"]
    with pytest.raises(UserError, match="--steps"):
        policy_commands.evaluate_policy(dataclasses.replace(command, steps="1,x", episodes=1))


def test_a_goal_is_run_and_filmed(trained, capsys, tmp_path):
    command = Run(str(trained), "move to the left", output=tmp_path, json=True)
    assert policy_commands.run_policy_goal(command) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["key"] == "go left"
    assert result["success"]
    film = tmp_path / "move-to-the-left-0.gif"
    assert film.read_bytes()[:3] == b"GIF"
    with pytest.raises(GoalNotUnderstood):
        policy_commands.run_policy_goal(dataclasses.replace(command, goal="make me a coffee"))


@pytest.mark.parametrize("said", FAULTS)
def test_an_evaluation_names_the_world_that_fails(trained, monkeypatch, said):
    break_line(monkeypatch, said)
    policy_language.world_of.cache_clear()
    with pytest.raises(EnvironmentFault) as raised:
        policy_commands.evaluate_policy(Eval(str(trained), episodes=2, json=True))
    policy_language.world_of.cache_clear()
    assert str(raised.value) == (
        f"The world line {said}, at step 1 of an episode. Nothing that was saved is lost; mend "
        "it, then run the command again."
    )


@pytest.mark.parametrize("part", ["possible", "render"])
def test_a_run_names_the_world_whose_scene_cannot_be_told_or_shown(trained, monkeypatch, part):
    def fail(self):
        raise KeyError(part)

    monkeypatch.setattr(Line, part, fail)
    with pytest.raises(EnvironmentFault, match=rf"The world line raised KeyError\('{part}'\)"):
        policy_commands.run_policy_goal(Run(str(trained), "move to the left"))


def test_a_saved_policy_acts_as_it_did(trained, line):
    pipe = load_policy(trained / "agent")
    observation = np.array([[0.4, 1.0], [-0.4, 1.0]], np.float32)

    def act(goal, **more):
        generator = torch.Generator().manual_seed(0)
        return pipe(goal, observation=observation, generator=generator, **more).actions

    assert act("go left").shape == (2, 2, 1)
    assert (act("go left") < 0).all()
    assert (act("go right") > 0).all()
    assert np.array_equal(act(pipe.encode_goal(["go left", "go left"])), act("go left"))
    mixed = act(["go left", "go right"])
    assert mixed[0, 0, 0] < 0 < mixed[1, 0, 0]
    with pytest.raises(UserError, match="as many goals"):
        act(["go left"] * 3)
    with pytest.raises(UserError, match=r"\[B, 1, 2\]"):
        pipe("go left", observation=np.zeros(3))
    with pytest.raises(UserError, match="not finite"):
        pipe("go left", observation=np.array([np.nan, 1.0]))


def test_a_resumed_run_is_the_same_run(line, tmp_path, monkeypatch):
    train_policy_agent(config(max_steps=40, checkpoint_every=20), tmp_path / "whole", quiet=True)

    original = policy_agent.ChunkSampler.batch

    def breaking(self, seed, shard, size):
        if shard == 25:
            raise InterruptedError
        return original(self, seed, shard, size)

    monkeypatch.setattr(policy_agent.ChunkSampler, "batch", breaking)
    half = config(max_steps=40, checkpoint_every=20)
    with pytest.raises(InterruptedError):
        train_policy_agent(half, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(policy_agent.ChunkSampler, "batch", original)
    train_policy_agent(half, tmp_path / "cut", resume=True, quiet=True)
    whole, cut = (
        load_policy(tmp_path / run / "agent").network.state_dict() for run in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_the_kind_of_an_agent_decides_its_settings():
    found = agent_from_dict({"kind": "policy", "name": "x", "chunks": {"horizon": 3, "execute": 2}})
    assert isinstance(found, PolicyAgentConfig)
    assert found.chunks.horizon == 3
    with pytest.raises(UserError, match="horizons"):
        agent_from_dict({"kind": "policy", "chunks": {"horizons": 3}})


def test_word_dropout_hides_tokens_in_training_only(line):
    base = config()
    base = dataclasses.replace(base, chunks=dataclasses.replace(base.chunks, word_dropout=0.5))
    world, recording = Line(), policy_agent.load_or_record(base.world, quiet=True)
    sampler = policy_agent.make_sampler(base, recording, world, load_sayings(Line.family))
    module = policy_agent.PolicyModule(base, policy_agent.fit_normalizer(recording, 0), 1)
    batch = sampler.batch(0, 0, 16)
    whole = module.transitions(batch).now.words.mask
    some = module.transitions(batch, torch.Generator().manual_seed(0)).now.words.mask
    assert some.sum() < whole.sum()
    assert not (some & ~whole).any()


@pytest.mark.parametrize("name", get_args(AlgorithmName))
def test_every_algorithm_trains_is_saved_and_acts(line, tmp_path, name):
    if name in ("sdac", "fpo", "dppo"):
        pytest.skip("they learn online: test_online.py")
    base = config(max_steps=2)
    qc = QCConfig(target_candidates=2, flow_steps=2)
    learning = dataclasses.replace(base.algorithm, name=name, qc=qc)
    train_policy_agent(dataclasses.replace(base, algorithm=learning), tmp_path / "run", quiet=True)
    pipe = load_policy(tmp_path / "run" / "agent")
    assert (pipe.critic is None) == (name not in ("idql", "qc"))
    observation = np.zeros((3, 2), np.float32)
    actions = pipe("go left", observation=observation, num_inference_steps=2).actions
    assert actions.shape == (3, 2, 1)
    assert np.isfinite(actions).all()
