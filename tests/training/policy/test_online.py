"""Learning from own experience, end to end in a small world."""

import dataclasses
import json
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from line_world import break_line

from lmdiff.algos.config import AlgorithmConfig, CriticConfig, FPOConfig, NetworkConfig, QCConfig
from lmdiff.config import TrainingConfig
from lmdiff.data.recordings import read_recording
from lmdiff.data.replay import Replay
from lmdiff.errors import EnvironmentFault, UserError
from lmdiff.evaluation.agents import load_policy
from lmdiff.evaluation.policy_language import Told, world_of
from lmdiff.policy_config import ChunkConfig, OnlineConfig, PolicyAgentConfig, WorldConfig
from lmdiff.training.policy import experience as policy_experience
from lmdiff.training.policy.agent import train_policy_agent
from lmdiff.training.policy.experience import OffPolicyData
from lmdiff.training.policy.on_policy_data import _outcomes, _seen
from lmdiff.training.policy.rollouts import load_reward, play_round

ROUNDS = OnlineConfig(
    episodes_per_round=6, updates_per_round=4, worlds=4, num_inference_steps=2, noise=0.1
)


def config(name="qc", online=ROUNDS, **training):
    return PolicyAgentConfig(
        name="line",
        world=WorldConfig(name="line", dataset="mixed", episodes=8, noise=1.0),
        chunks=ChunkConfig(history=2, horizon=3, execute=2),
        algorithm=AlgorithmConfig(
            name=name,
            network=NetworkConfig(width=16, layers=2),
            critic=CriticConfig(width=16, layers=1, discount=0.9),
            qc=QCConfig(candidates=2, target_candidates=1, flow_steps=1),
            fpo=FPOConfig(draws=2),
        ),
        online=online,
        training=TrainingConfig(
            **{"max_steps": 8, "batch_size": 16, "warmup_steps": 1, "ema_decay": 0.0}
            | {"log_every": 4, "checkpoint_every": 4}
            | training
        ),
    )


OWN = {
    "fpo": dataclasses.replace(ROUNDS, noise=0.0),
    "bc": dataclasses.replace(ROUNDS, learn_from="successes"),
}


def weights(run):
    return load_policy(run / "agent").network.state_dict()


def lines(run):
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in told]


@pytest.fixture(scope="module")
def imitated(line, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "bc"
    train_policy_agent(config("bc", OnlineConfig()), run, quiet=True)
    return run / "agent"


@pytest.mark.parametrize("name", ["qc", "fpo", "bc"])
def test_a_resumed_run_is_the_same_run(line, imitated, tmp_path, monkeypatch, name):
    settings = config(name, OWN.get(name, ROUNDS), max_steps=12, checkpoint_every=4)
    warned = nullcontext() if name == "bc" else pytest.warns(UserWarning, match="start fresh")
    with warned:
        train_policy_agent(settings, tmp_path / "whole", init=imitated, quiet=True)

    batch, calls = policy_experience.Experience.batch, []

    def breaking(self, number):
        calls.append(number)
        if number == 10:  # in the third round, whose episodes are on disk already
            raise InterruptedError
        return batch(self, number)

    monkeypatch.setattr(policy_experience.Experience, "batch", breaking)
    warned = nullcontext() if name == "bc" else pytest.warns(UserWarning, match="start fresh")
    with warned, pytest.raises(InterruptedError):
        train_policy_agent(settings, tmp_path / "cut", init=imitated, quiet=True)
    monkeypatch.setattr(policy_experience.Experience, "batch", batch)
    train_policy_agent(settings, tmp_path / "cut", resume=True, quiet=True)

    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[part], cut[part]) for part in whole)
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")
    last = lines(tmp_path / "whole")[-1]
    assert 0 <= last["rollout/success"] <= 1
    rounds = sorted((tmp_path / "cut" / "replay").glob("*")) if name != "fpo" else []
    if rounds:
        assert len(rounds) == 3
        assert sum(read_recording(path).steps for path in rounds) == last["environment_steps"]


def test_successes_alone_are_learned_from(line, tmp_path):
    played = []

    def make_sampler(recording):
        played.append(recording)
        return Sampled("own")

    class Sampled:
        def __init__(self, name):
            self.name = name

        def batch(self, seed, shard, size):
            return [self.name] * size

    def episodes(*actions):
        told = [Told(2 * n, "go right", "go right") for n in range(len(actions))]
        settings = config(online=dataclasses.replace(ROUNDS, noise=0.0))
        return [
            play_round(settings, [t], always(a), 1, None, 0)[0]
            for t, a in zip(told, actions, strict=True)
        ]

    settings = config("bc", OWN["bc"])
    recorded, replay = Sampled("recorded"), Replay(tmp_path)
    data = OffPolicyData(settings, recorded, make_sampler, replay, writes=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            policy_experience, "mixed", lambda parts: [row for part in parts for row in part]
        )
        data.take(0, episodes(-1.0))
        assert not played
        assert data.batch(0) == ["recorded"] * 16
        data.take(1, episodes(1.0, -1.0, 1.0))
        assert played[0].successes.tolist() == [True, True]
        assert (played[0].actions == 1).all()
        assert data.batch(0) == ["own"] * 8 + ["recorded"] * 8
    assert replay.everything.successes.tolist() == [False, True, False, True]


def test_the_start_is_the_trained_policy(line, imitated, tmp_path):
    settings = config("fpo", OWN["fpo"], max_steps=4, learning_rate=1e-12)
    with pytest.warns(UserWarning, match="algorithm.value"):
        train_policy_agent(settings, tmp_path / "run", init=imitated, quiet=True)
    before, after = weights(imitated.parent), weights(tmp_path / "run")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    other = dataclasses.replace(settings, chunks=ChunkConfig(history=2, horizon=4, execute=2))
    with pytest.raises(UserError, match="another one"):
        train_policy_agent(other, tmp_path / "other", init=imitated, quiet=True)


def test_a_learned_critic_and_its_target_come_along(line, tmp_path):
    settings = config("qc", OnlineConfig())
    train_policy_agent(settings, tmp_path / "offline", quiet=True)
    warnings.filterwarnings("error", message="Not in")  # nothing starts fresh
    online = config("qc", max_steps=4, learning_rate=1e-12)
    train_policy_agent(online, tmp_path / "online", init=tmp_path / "offline" / "agent", quiet=True)
    first, second = (load_policy(tmp_path / run / "agent").critic for run in ("offline", "online"))
    for name, tensor in first.state_dict().items():
        assert torch.allclose(tensor, second.state_dict()[name], atol=1e-6)


@pytest.mark.parametrize("algorithm", ["fpo", "dppo"])
def test_on_policy_learning_takes_all_of_the_last_round(line, tmp_path, algorithm):
    own = dataclasses.replace(OWN["fpo"], learn_from="successes")
    with pytest.raises(UserError, match=f"{algorithm} learns from failures too"):
        train_policy_agent(config(algorithm, own), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    "said", ["did not return within 0.5 s", "returned an observation that is not finite"]
)
def test_a_world_that_fails_costs_no_checkpoint(line, tmp_path, monkeypatch, said):
    settings, run = config("qc", max_steps=8), tmp_path / "run"
    play = policy_experience.play_round
    with monkeypatch.context() as broken:

        def playing(*arguments):
            if (run / "replay").exists():  # in the second round, which begins after step 4
                world_of.cache_clear()
                break_line(broken, said)
            return play(*arguments)

        broken.setattr(policy_experience, "play_round", playing)
        with pytest.raises(EnvironmentFault) as raised:
            train_policy_agent(settings, run, quiet=True)
    world_of.cache_clear()
    assert str(raised.value) == (
        f"The world line {said}, at step 1 of an episode. The checkpoint of step 4 is kept. Mend "
        f"it. Go on with: lmdiff train --resume {run}"
    )
    kept = (run / "replay" / "round-00000000.safetensors").read_bytes()
    train_policy_agent(settings, run, resume=True, quiet=True)
    assert lines(run)[-1]["step"] == 8
    assert (run / "replay" / "round-00000000.safetensors").read_bytes() == kept


def always(value):
    """A policy that does one thing."""

    def act(observation, words, generator):
        return np.full((len(words), 1, 3, 1), value, np.float32)

    return act


def test_episodes_are_whole_and_start_afresh(line):
    told = [Told(2 * n, goal, goal) for n, goal in enumerate(["go right", "go left"] * 3)]
    online = dataclasses.replace(ROUNDS, noise=0.0)
    episodes = play_round(config(online=online), told, always(1.0), 1, None, 0)
    for t, episode in zip(told, episodes, strict=True):
        part = episode.demonstration
        # The first of what was seen is where the seed starts, whatever the world did before.
        assert part.observations[0, 0] == pytest.approx(0.2 * (t.seed % 5 - 2))
        assert np.allclose(np.diff(part.observations[:, 0]), 0.5)
        assert part.success.sum() == part.success[-1] == (t.goal == "go right")
        assert part.rewards.tolist() == part.success.astype(float).tolist()
        assert len(part.actions) == (12 if t.goal == "go left" else len(part.actions))
        assert episode.begins.tolist() == list(range(0, len(part.actions), 2))
        assert episode.chains.shape == (len(episode.begins), 1, 3, 1)
        assert episode.words == t.words
    noisy = play_round(config(), told, always(1.0), 1, None, 0)
    assert noisy[0].demonstration.actions.std() > 0


def half_way(world):
    return float(world.x) / 2


def test_a_dense_reward_by_name(line):
    assert load_reward("") is None
    reward = load_reward(f"{__name__}:half_way")
    told = [Told(4, "go right", "go right")]
    episode = play_round(config(), told, always(1.0), 1, reward, 0)[0]
    seen = episode.demonstration.observations[1:, 0]
    assert np.allclose(episode.demonstration.rewards, seen / 2)
    for name in ("half_way", "nowhere:at_all", f"{__name__}:nothing"):
        with pytest.raises(UserError, match="module:function"):
            load_reward(name)
    with pytest.raises(EnvironmentFault, match="dense reward returned nan as a reward, at step 1"):
        play_round(config(), told, always(1.0), 1, lambda world: float("nan"), 0)


def test_what_a_round_was_worth(line):
    told = [Told(4, "go right", "go right"), Told(4, "go left", "go left")]
    online = dataclasses.replace(ROUNDS, noise=0.0)
    good, bad = play_round(config(online=online), told, always(0.8), 1, None, 0)
    # From 0.4 by 0.4 a step: beyond 1.5 after 3 steps, which is in the second chunk.
    rewards, discounts = _outcomes(good, 0.9)
    assert rewards.tolist() == [0, 1]
    assert discounts.tolist() == pytest.approx([0.81, 0])
    rewards, discounts = _outcomes(bad, 0.9)
    assert rewards.sum() == 0
    assert discounts.tolist() == pytest.approx([0.81] * 6)
    seen = _seen(good, 2)[..., 0]
    assert seen.tolist() == pytest.approx(np.array([[0.4, 0.4], [0.8, 1.2], [1.2, 1.6]]))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (config("bc"), "own failures"),
        (config("fpo"), "noise"),
        (config("fpo", OnlineConfig()), "episodes-per-round"),
        (config(online=dataclasses.replace(ROUNDS, reward="math:sqrt")), "dense rewards"),
        (config(max_steps=7), "rounds"),
    ],
)
def test_settings_that_do_not_go_together(line, tmp_path, settings, what):
    with pytest.raises(UserError, match=what):
        train_policy_agent(settings, tmp_path / "run", quiet=True)


def test_sdac_learns_from_own_experience_alone(line, tmp_path):
    with pytest.raises(UserError, match="imitates nothing"):
        config("sdac", OnlineConfig())
    online = dataclasses.replace(ROUNDS, offline_share=0.0)
    train_policy_agent(config("sdac", online, max_steps=8), tmp_path / "run", quiet=True)
    last = lines(tmp_path / "run")[-1]
    assert np.isfinite([last["critic_loss"], last["actor_loss"]]).all()
    assert last["alpha"] > 0
