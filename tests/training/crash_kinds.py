"""What crash_trials.py trains and kills: every kind of training, tiny; each `(run_dir, resume)`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from line_world import Line
from rank_policies import ONLINE, line_sayings, policy_config, record_line
from rank_program import agent_config, imitation_batch, imitation_module
from training_toy import Toy, batches, make_config

from lmdiff.algos.config import AlgorithmName
from lmdiff.config import load_agent, load_control_agent
from lmdiff.pipelines.text_agents import make_text_model, save_text_agent
from lmdiff.policy_config import OnlineConfig
from lmdiff.text.config import TextAgentConfig
from lmdiff.text.tasks import make_task
from lmdiff.training.loop import train
from lmdiff.training.policy import agent as policy_agent
from lmdiff.training.text.agent import train_text_agent

STEPS = 40


def toy(run_dir: Path, resume: bool) -> None:
    """A network of a few weights with dropout, a buffer and noise: hundreds of steps a second."""
    config = make_config(max_steps=STEPS, checkpoint_every=2, log_every=3)
    train(config, Toy(), batches, run_dir, resume=resume, quiet=True)


def imitation(run_dir: Path, resume: bool) -> None:
    """The planner with its goal prior; the language model is frozen."""
    _imitation("frozen", run_dir, resume)


def lora(run_dir: Path, resume: bool) -> None:
    """The same, with LoRA in the language model."""
    _imitation("lora", run_dir, resume)


def _imitation(adaptation: str, run_dir: Path, resume: bool) -> None:
    config = agent_config(adaptation)
    train(
        make_config(max_steps=STEPS, checkpoint_every=2, log_every=3, learning_rate=1e-3),
        imitation_module(config),
        lambda step: imitation_batch(config, step),
        run_dir,
        resume=resume,
        quiet=True,
    )


def pointmaze(run_dir: Path, resume: bool) -> None:
    """A whole agent, from data to the saved pipeline, tiny."""
    from lmdiff.training.agent import train_agent

    agent = load_control_agent("pointmaze-medium")
    config = replace(
        agent,
        task=replace(agent.task, steps=20_000),
        denoiser=replace(agent.denoiser, width=32, layers=1),
        data=replace(agent.data, phrases=60, route_goals=32),
        training=make_config(max_steps=STEPS, checkpoint_every=2, log_every=3, batch_size=8),
    )
    train_agent(config, run_dir, resume=resume, quiet=True)


def policy(run_dir: Path, resume: bool) -> None:
    """A policy over action chunks: behaviour cloning, in a world of one line."""
    _policy("bc", OnlineConfig(), run_dir, resume)


def critic(run_dir: Path, resume: bool) -> None:
    """The same with a critic and its slow copy: FQL."""
    _policy("fql", OnlineConfig(), run_dir, resume)


def online(run_dir: Path, resume: bool) -> None:
    """The same from own episodes, which a replay buffer keeps: IDQL. Rounds are of four steps; one
    that was interrupted is played again from its beginning."""
    _policy("idql", replace(ONLINE, updates_per_round=4), run_dir, resume)


def _policy(algorithm: AlgorithmName, own: OnlineConfig, run_dir: Path, resume: bool) -> None:
    policy_agent.load_or_record = record_line
    policy_agent.make_world = Line
    policy_agent.load_sayings = lambda _: line_sayings(run_dir.parent)
    budget = {"max_steps": STEPS, "checkpoint_every": 2, "log_every": 3, "batch_size": 8}
    config = policy_config(algorithm, own, **budget)
    policy_agent.train_policy_agent(config, run_dir, resume=resume, quiet=True)


def sft(run_dir: Path, resume: bool) -> None:
    """A text agent that learns from solved puzzles, tiny."""
    train_text_agent(_text_agent("sudoku-sft"), run_dir, resume=resume, quiet=True)


def text_rl(run_dir: Path, resume: bool) -> None:
    """A text agent that learns from rewards: two updates on each batch of roll-outs."""
    config = _text_agent("sudoku-rl")
    start = run_dir.parent / "start"
    if not start.exists():
        torch.manual_seed(0)
        fresh = make_text_model(config.model, make_task(config.task).alphabet)
        save_text_agent(config, fresh, start, {})
    train_text_agent(config, run_dir, init=start, resume=resume, quiet=True)


def _text_agent(name: str) -> TextAgentConfig:
    agent = load_agent(name)
    assert isinstance(agent, TextAgentConfig)
    return replace(
        agent,
        task=replace(agent.task, examples=300, rewards=("rank_program:threes",)),
        model=replace(agent.model, width=32, layers=1, max_length=40),
        sft=replace(agent.sft, stop_at=0.0),
        rl=replace(agent.rl, num_generations=4, samples=2, num_iterations=2),
        training=make_config(max_steps=STEPS, checkpoint_every=2, log_every=3, batch_size=8),
    )


Kind = Callable[[Path, bool], None]
KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (toy, imitation, lora, pointmaze, policy, critic, online, sft, text_rl)
}
