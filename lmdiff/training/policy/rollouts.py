"""Own experience of a policy: whole episodes, many side by side, shared among processes.

Gymnasium's vector environments reset in the middle of a batch, and give transitions across a
reset unless one takes care (`AutoresetMode`). Here nothing is reset automatically (their mode
DISABLED): a free world begins an episode, runs it to success or to its time limit, and then takes
the next one. Each episode of a round starts afresh and none spans two rounds, so a resumed run
needs no state of a simulator.
"""

import importlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any, Protocol, cast

import numpy as np
import torch

from lmdiff.data.demonstrations import disturbed, one_hot
from lmdiff.data.recordings import Demonstration
from lmdiff.errors import UserError
from lmdiff.evaluation.policy_language import Told, world_of
from lmdiff.evaluation.policy_rollout import recent
from lmdiff.evaluation.sharing import over_ranks
from lmdiff.policy_config import PolicyAgentConfig
from lmdiff.tasks.guarded import Guard
from lmdiff.tasks.world import World

Reward = Callable[[World], float]


class Act(Protocol):
    """A policy with its exploration."""

    def __call__(
        self, observation: np.ndarray, words: Sequence[str], generator: torch.Generator
    ) -> np.ndarray:
        """Chains [B, links, horizon, action] for observations [B, history, observation].

        The last link of a chain is the chunk to do; what comes before it, if anything, is what an
        algorithm remembers of how the chunk came about.
        """
        ...


@dataclass(frozen=True)
class OwnEpisode:
    """One episode of T steps and D decisions."""

    demonstration: Demonstration
    """What was seen and done, with rewards."""
    begins: np.ndarray
    """[D] int64: the step before which each decision was made."""
    chains: np.ndarray
    """[D, links, horizon, action]"""
    words: str
    """What was said."""


@dataclass
class _Running:
    """An episode that is being played."""

    world: World
    words: str
    observations: list[np.ndarray]
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    chains: list[np.ndarray] = field(default_factory=list)
    achieved: bool = False


def play_round(
    config: PolicyAgentConfig,
    told: Sequence[Told],
    act: Act,
    links: int,
    reward: Reward | None,
    seed: int,
) -> list[OwnEpisode]:
    """Play all episodes, each process its share; every process gets all of them.

    Args:
        config: the agent.
        told: starts, goals and words.
        act: the policy.
        links: of its chains.
        reward: a dense one; None: 1 at success, else 0.
        seed: of this process's noise.
    """
    rows = _Rows(config, world_of(config.world.name), links)

    def run(mine: list[int]) -> list[np.ndarray]:
        played = _play(config, [told[index] for index in mine], act, reward, seed)
        return [rows.pack(_arrays(episode)) for episode in played]

    return [
        _episode(rows.unpack(row), told[index].words)
        for index, row in enumerate(over_ranks(len(told), run))  # pyright: ignore[reportArgumentType]
    ]


def _play(
    config: PolicyAgentConfig,
    told: Sequence[Told],
    act: Act,
    reward: Reward | None,
    seed: int,
) -> list[_Running]:
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    pending = deque(range(len(told)))
    played: list[_Running | None] = [None] * len(told)
    busy: dict[int, int] = {}  # world -> episode
    while pending or busy:
        for slot in range(config.online.worlds):
            if slot not in busy and pending:
                busy[slot] = pending.popleft()
                played[busy[slot]] = _begin(world_of(config.world.name, slot), told[busy[slot]])
        active = [episode for i in busy.values() if (episode := played[i]) is not None]
        seen = np.stack([recent(e.observations, config.chunks.history) for e in active])
        chains = act(seen, [episode.words for episode in active], generator)
        for slot, episode, chain in zip(list(busy), active, chains, strict=True):
            if _execute(config, episode, chain, reward, rng):
                del busy[slot]
    return [episode for episode in played if episode is not None]


def _begin(world: World, told: Told) -> _Running:
    observation, _ = world.reset(seed=told.seed, options={"goal": told.goal})
    return _Running(world, told.words, [observation])


def _execute(
    config: PolicyAgentConfig,
    episode: _Running,
    chain: np.ndarray,
    reward: Reward | None,
    rng: np.random.Generator,
) -> bool:
    """Do the first actions of a chunk; returns whether the episode has ended."""
    episode.begins.append(len(episode.actions))
    episode.chains.append(chain)
    world = episode.world
    for action in chain[-1, : config.chunks.execute]:
        said = one_hot(int(np.argmax(action)), len(action)) if world.discrete else action
        done = disturbed(world, said, config.online.noise, rng)
        observation, gained, achieved, late, _ = world.step(done)
        episode.observations.append(observation)
        episode.actions.append(done)
        episode.rewards.append(gained if reward is None else _valued(reward, world))
        episode.achieved = achieved
        if achieved or late:
            return True
    return False


def _valued(reward: Reward, world: World) -> float:
    """The dense reward of a state, watched as the world is."""
    guard = Guard("dense reward", world.guard.seconds)
    guard.step = world.steps
    return guard.number(guard.call(lambda: reward(world)))


def load_reward(name: str) -> Reward | None:
    """A dense reward by its dotted name `module:function`; None for an empty name.

    It imports a module of the user's: take it from a recipe of one's own, never from a stranger's.

    Raises:
        UserError: it cannot be imported, or is no function.
    """
    if not name:
        return None
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = vars(found)[part]
    except (ImportError, ValueError, KeyError) as error:
        raise UserError(
            f"online.reward = {name!r} cannot be found ({error!r}): write package.module:function. "
            "If its file lies in this folder, start with: PYTHONPATH=. lmdiff ..."
        ) from error
    if not callable(found):
        raise UserError(f"online.reward = {name!r} is no function.")
    return cast(Reward, found)


class _Rows:
    """Episodes as rows of numbers, all of one length, which processes can exchange.

    Args:
        config: the agent.
        world: its world.
        links: of a chain.
    """

    def __init__(self, config: PolicyAgentConfig, world: World, links: int):
        steps, action = world.episode_steps, world.action_size
        decisions = ceil(steps / config.chunks.execute)
        self.shapes: list[tuple[int, ...]] = [
            (steps + 1, world.observation_size),
            (steps, action),
            (steps,),
            (steps,),
            (steps,),
            (decisions,),
            (decisions, links, config.chunks.horizon, action),
        ]

    def pack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Arrays, which may be shorter than their shapes, after their lengths."""
        parts = [np.array([len(array) for array in arrays], np.float64)]
        for array, shape in zip(arrays, self.shapes, strict=True):
            parts.append(np.zeros(prod(shape)))
            parts[-1][: array.size] = array.ravel()
        return np.concatenate(parts)

    def unpack(self, row: np.ndarray) -> list[np.ndarray]:
        """What was packed, as float64."""
        count = len(self.shapes)
        ends = count + np.cumsum([0] + [prod(shape) for shape in self.shapes])
        return [
            row[start : start + int(length) * prod(shape[1:])].reshape(int(length), *shape[1:])
            for start, length, shape in zip(ends, row[:count], self.shapes, strict=False)
        ]


def _arrays(episode: _Running) -> list[np.ndarray]:
    steps = len(episode.actions)
    success = np.zeros(steps)
    success[-1] = episode.achieved
    return [
        np.stack(episode.observations),
        np.stack(episode.actions),
        np.full(steps, episode.world.goals.index(episode.world.goal)),
        success,
        np.array(episode.rewards),
        np.array(episode.begins),
        np.stack(episode.chains),
    ]


def _episode(arrays: Sequence[np.ndarray], words: str) -> OwnEpisode:
    observations, actions, goals, success, rewards, begins, chains = arrays
    demonstration = Demonstration(
        observations.astype(np.float32),
        actions.astype(np.float32),
        goals.astype(np.int64),
        success.astype(bool),
        rewards.astype(np.float32),
    )
    return OwnEpisode(demonstration, begins.astype(np.int64), chains.astype(np.float32), words)
