"""Policies in the world of one line, trained on any number of ranks: for rank_program.py and
crash_trials.py. Importing it makes worlds of this one kind only.
"""

import os

import numpy as np
import torch
from line_world import SAYINGS, Line
from training_toy import make_config

from lmdiff.algos.config import (
    AlgorithmConfig,
    CriticConfig,
    FPOConfig,
    FQLConfig,
    IDQLConfig,
    NetworkConfig,
)
from lmdiff.data.demonstrations import demonstrate
from lmdiff.data.recordings import joined
from lmdiff.evaluation import policy_language
from lmdiff.goals.sayings import load_sayings
from lmdiff.policy_config import ChunkConfig, OnlineConfig, PolicyAgentConfig, WorldConfig
from lmdiff.training.loop import train
from lmdiff.training.policy.agent import fit_normalizer, make_sampler
from lmdiff.training.policy.experience import Experience, OffPolicyData
from lmdiff.training.policy.module import PolicyModule
from lmdiff.training.policy.online import OnlineModule
from lmdiff.training.ranks import shard_of

STEPS = 20
ONLINE = OnlineConfig(episodes_per_round=5, updates_per_round=10, worlds=2, num_inference_steps=2)
policy_language.make_world = Line


def policy_config(algorithm="bc", online=None, **training):
    return PolicyAgentConfig(
        name="line",
        world=WorldConfig(name="line", episodes=8),
        chunks=ChunkConfig(horizon=2, execute=1),
        algorithm=AlgorithmConfig(
            name=algorithm,
            network=NetworkConfig(width=32, layers=2),
            critic=CriticConfig(width=16, layers=1),
            idql=IDQLConfig(candidates=2),
            fql=FQLConfig(flow_steps=2),
            fpo=FPOConfig(draws=2),
        ),
        online=online or OnlineConfig(),
        training=make_config(**training),
    )


def record_line(config, quiet=True):
    return joined([demonstrate(Line(), config, index) for index in range(config.episodes)])


def line_sayings(folder):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"line-{os.getpid()}.toml"  # ranks must not write over each other's
    path.write_text(SAYINGS, encoding="utf-8")
    return load_sayings(str(path))


def train_policy(run_dir, accelerator, algorithm="bc"):
    """From recordings of an expert that words send left or right."""
    world, config = Line(), policy_config(algorithm)
    recording = record_line(config.world)
    sampler = make_sampler(config, recording, world, line_sayings(run_dir.parent))
    torch.manual_seed(0)
    module = PolicyModule(config, fit_normalizer(recording, 0), 1)
    train_line(
        run_dir,
        accelerator,
        module,
        sampler,
        lambda number: sampler.batch(0, shard_of(accelerator, number), 8),
    )
    return module


def train_line(run_dir, accelerator, module, sampler, batches, round_steps=1):
    module.goal_encoder(sorted({text for texts in sampler.phrases for text in texts}))

    def watch(event, step, figures):
        if event == "step":
            module.algorithm.after_step()

    train(
        make_config(max_steps=STEPS, learning_rate=1e-3),
        module,
        batches,
        run_dir,
        accelerator=accelerator,
        watch=watch,
        round_steps=round_steps,
        quiet=True,
    )


class Acting(OnlineModule):
    """Keeps the first draw of the noise that each of its decisions is made with."""

    def act(self, observation, words, generator, steps):
        self.drawn.append(float(torch.randn((), generator=generator.clone_state())))
        return super().act(observation, words, generator, steps)


def train_online(run_dir, accelerator, algorithm):
    """From own episodes, in rounds. Returns the module and all that was lived, as one number."""
    world, config = Line(), policy_config(algorithm, ONLINE, batch_size=8)
    recording, sayings = record_line(config.world), line_sayings(run_dir.parent)
    sampler = make_sampler(config, recording, world, sayings)
    torch.manual_seed(0)
    module = Acting(config, fit_normalizer(recording, 0), 1)
    module.drawn = []

    def samples(lived):
        return make_sampler(config, lived, world, sayings)

    experience = Experience(config, module, world, sayings, sampler, samples, run_dir, accelerator)
    lived = 0.0

    def batch(number):
        nonlocal lived
        found = experience.batch(number)
        if isinstance(experience.data, OffPolicyData):
            lived = float(experience.data.replay.everything.observations.sum(dtype=np.float64))
        else:
            lived = float(experience.data.round.chain.double().sum())
        return found

    train_line(run_dir, accelerator, module, sampler, batch, ONLINE.updates_per_round)
    return module, lived
