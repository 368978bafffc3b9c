"""Demonstrations: experts at work in a world, good and bad, on all cores, recorded once.

An episode is a pure function of (world, data set, seed, index).
"""

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lmdiff.data.episodes import data_folder
from lmdiff.data.recordings import Demonstration, Recording, joined, read_recording
from lmdiff.data.workers import telling_of_deaths
from lmdiff.errors import EnvironmentFault, UserError
from lmdiff.policy_config import WorldConfig
from lmdiff.tasks.world import World
from lmdiff.tasks.worlds import make_world

_VERSION = 1  # raise it when the recording changes: old files are then left alone and not found
_AFTER_SUCCESS = 4  # steps that are recorded after a goal is achieved: policies learn to stay


def recording_path(config: WorldConfig) -> Path:
    """Where the recording that a config asks for lies, once it is made."""
    size = f"{config.episodes}x-noise{config.noise:g}-seed{config.data_seed}"
    name = f"{config.name}-{config.dataset}-{size}-v{_VERSION}.safetensors"
    return data_folder() / "lmdiff" / "worlds" / name


def load_or_record(config: WorldConfig, *, quiet: bool = False) -> Recording:
    """The recording of a config: from disk if it is there, else made on all cores.

    Raises:
        UserError: it is damaged, or a process died while it was made.
        EnvironmentFault: the world failed; nothing is written then.
    """
    path = recording_path(config)
    if not path.is_file():
        try:
            recording = _record(config, quiet=quiet)
        except EnvironmentFault as fault:
            kept = "Nothing was recorded. Mend the world, then run the command again."
            raise EnvironmentFault(fault.what, kept) from fault
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as scratch:
            recording.save(Path(scratch) / path.name)
            # Whoever finishes first wins; another's is the same.
            os.replace(Path(scratch) / path.name, path)
    return read_recording(path)


def _record(config: WorldConfig, *, quiet: bool) -> Recording:
    if config.episodes < 1:
        raise UserError(f"world.episodes = {config.episodes}: at least one is needed.")
    make_world(config.name)  # a name that is wrong is told before processes are started
    workers = min(os.cpu_count() or 1, config.episodes)
    jobs = np.array_split(np.arange(config.episodes), min(config.episodes, 32 * workers))
    found: list[Demonstration] = []
    with (
        telling_of_deaths(config.name, f"--world.episodes {max(config.episodes // 4, 1)}"),
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        tqdm(total=config.episodes, desc=f"data {config.name}", unit="ep", disable=quiet) as bar,
    ):
        for episodes in pool.map(partial(_episodes, config), jobs):
            found.extend(episodes)
            bar.update(len(episodes))
    return joined(found)


_made = cache(make_world)  # one world a worker process: making it takes up to a second


def _episodes(config: WorldConfig, indices: np.ndarray) -> list[Demonstration]:
    return [demonstrate(_made(config.name), config, int(index)) for index in indices]


def demonstrate(world: World, config: WorldConfig, index: int) -> Demonstration:
    """Record episode number `index`."""
    rng = np.random.default_rng([config.data_seed, index])
    asked = None if world.swappable else world.goals[index % len(world.goals)]
    # Seeds of recordings are even and those of evaluations odd: no start is seen in both.
    seed = 2 * int(rng.integers(2**30))
    observation, _ = world.reset(seed=seed, options={"goal": asked} if asked else None)
    level = config.noise * rng.random()
    observations, actions, goals, success = [observation], [], [], []
    left = None
    for _ in range(world.episode_steps):
        said = world.advice()
        if said is None:
            break  # the expert gave up; what it did so far is no worse for that
        if world.discrete:
            said = one_hot(int(np.argmax(said)), len(said))
        done = disturbed(world, said, level, rng)
        observation, _, achieved, _, _ = world.step(done)
        actions.append(said if config.dataset == "expert" else done)
        goals.append(world.goals.index(world.goal))
        success.append(achieved)
        observations.append(observation)
        if achieved and config.dataset == "play":
            world.guard.call(lambda: world.switch(str(rng.choice(world.possible() or world.goals))))
        elif achieved and left is None:
            left = _AFTER_SUCCESS
        if left is not None:
            left -= 1
            if left < 0:
                break
    return Demonstration(
        np.stack(observations).astype(np.float32),
        np.array(actions, np.float32).reshape(len(actions), world.action_size),
        np.array(goals, np.int64),
        np.array(success, bool),
    )


def disturbed(
    world: World, action: np.ndarray, level: float, rng: np.random.Generator
) -> np.ndarray:
    """What is done where `action` is said.

    Args:
        world: whose actions they are.
        action: [action].
        level: standard deviation of what is added; the share of actions that are drawn at random,
            if they are discrete.
        rng: where the disturbance comes from.
    """
    size = action.shape
    if world.discrete:
        if rng.random() >= level:
            return action
        return one_hot(int(rng.integers(size[0])), size[0])
    return np.clip(action + level * rng.standard_normal(size), -1, 1).astype(np.float32)


def one_hot(index: int, size: int) -> np.ndarray:
    """A discrete action as a vector: 1 at its place and -1 elsewhere."""
    vector = -np.ones(size, np.float32)
    vector[index] = 1.0
    return vector
