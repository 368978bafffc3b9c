"""Episodes on disk (Minari) and in memory.

A data set is generated once, under the user's cache folder, and found again by its name; it is
written beside its place and moved there whole, so an interrupted generation leaves nothing behind.
"""

import os
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import gymnasium
import numpy as np
from tqdm import tqdm

from lmdiff.config import TaskConfig
from lmdiff.data.workers import telling_of_deaths
from lmdiff.errors import UserError
from lmdiff.tasks.pointmaze import PointMaze
from lmdiff.tasks.pointmaze_expert import Expert
from lmdiff.time_limits import TimeUp, call_within

_VERSION = 0  # raise it when the generator changes: old files are then left alone and not found
_EPISODE_SECONDS = 600.0  # a thousand steps take less than one

Episode = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Episodes:
    """Episodes one after the other: T_i actions and T_i + 1 observations each."""

    observations: list[np.ndarray]
    """Per episode [T + 1, observation], float32."""
    actions: list[np.ndarray]
    """Per episode [T, action], float32, in [-1, 1]."""

    @property
    def steps(self) -> int:
        """Environment steps in all."""
        return sum(len(actions) for actions in self.actions)


def data_folder() -> Path:
    """Where data sets live: $LMDIFF_DATA, else the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return Path(os.environ.get("LMDIFF_DATA", cache / "lmdiff" / "data")).expanduser().resolve()


def dataset_id(config: TaskConfig) -> str:
    """Minari id of the data that a task config asks for."""
    size = f"{config.steps}steps-seed{config.data_seed}"
    return f"lmdiff/{config.name}-{config.dataset}-{size}-v{_VERSION}"


def load_or_generate(config: TaskConfig, *, quiet: bool = False) -> Episodes:
    """The episodes of a task, from disk if they are there, else generated on all cores.

    Raises:
        UserError: the data set is damaged; or an environment failed, hung or returned what is not
            finite, or a process died while data were generated. Nothing is written then.
    """
    path = data_folder() / dataset_id(config)
    if not path.is_dir():
        _generate(config, path, quiet=quiet)
    return _load(path)


def _load(path: Path) -> Episodes:
    from minari.dataset.minari_dataset import MinariDataset

    try:
        episodes = list(MinariDataset(path / "data").iterate_episodes())
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"The data set {path} cannot be read ({error}). Delete it and run again: rm -r {path}"
        ) from error
    loaded = Episodes(
        observations=[np.asarray(episode.observations, np.float32) for episode in episodes],
        actions=[np.asarray(episode.actions, np.float32) for episode in episodes],
    )
    for index, arrays in enumerate(zip(loaded.observations, loaded.actions, strict=True)):
        if not all(np.isfinite(array).all() for array in arrays):
            raise UserError(
                f"Episode {index} of the data set {path} has values that are not finite. Delete "
                f"the data set and run again: rm -r {path}"
            )
    return loaded


def _generate(config: TaskConfig, path: Path, *, quiet: bool) -> None:
    if config.steps < 1:
        raise UserError(f"task.steps = {config.steps}: at least one step of data is needed.")
    task = PointMaze(config.name)
    count = -(-config.steps // task.episode_steps(config.dataset))
    workers = min(os.cpu_count() or 1, count)
    collect = partial(_collect, config)
    # A few episodes a job: jobs of many would leave one core idle at the end.
    jobs = np.array_split(np.arange(count), min(count, 16 * workers))
    episodes: list[Episode] = []
    # Spawned, not forked: the parent may hold torch's threads.
    with (
        telling_of_deaths(config.name, f"--task.steps {max(config.steps // 4, 1)}"),
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        tqdm(total=config.steps, desc=f"data {config.name}", unit="step", disable=quiet) as bar,
    ):
        for collected in pool.map(collect, jobs):
            episodes.extend(collected)
            bar.update(min(sum(len(a) for _, a in collected), config.steps - bar.n))
    _write(config, path, episodes)


_experts: dict[str, Expert] = {}  # one environment a worker process: making it takes 0.1 s


def _collect(config: TaskConfig, indices: np.ndarray) -> list[Episode]:
    if config.name not in _experts:
        _experts[config.name] = Expert(PointMaze(config.name))
    expert = _experts[config.name]
    return [_episode(expert, config, int(index)) for index in indices]


def _episode(expert: Expert, config: TaskConfig, index: int) -> Episode:
    def failed(what: str) -> UserError:
        return UserError(f"Episode {index} of {config.name}: the environment {what}.")

    try:
        run = partial(expert.episode, config.dataset, config.data_seed, index)
        episode = call_within(_EPISODE_SECONDS, run)
    except TimeUp:
        raise failed(f"took more than {_EPISODE_SECONDS:g} s") from None
    except Exception as error:
        raise failed(f"raised {error!r}") from error
    if not all(np.isfinite(array).all() for array in episode):
        raise failed("returned values that are not finite")
    return episode


def _write(config: TaskConfig, path: Path, episodes: list[Episode]) -> None:
    from minari import create_dataset_from_buffers
    from minari.data_collector.episode_buffer import EpisodeBuffer

    def buffer(index: int, observations: np.ndarray, actions: np.ndarray) -> EpisodeBuffer:
        steps = len(actions)
        return EpisodeBuffer(
            id=index,
            observations=observations,  # pyright: ignore[reportArgumentType]  (arrays are fine)
            actions=actions,  # pyright: ignore[reportArgumentType]
            rewards=[0.0] * steps,
            terminations=[False] * steps,
            truncations=[False] * (steps - 1) + [True],
        )

    observation_size = episodes[0][0].shape[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = os.environ.get("MINARI_DATASETS_PATH")
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as scratch,
        warnings.catch_warnings(),
    ):
        os.environ["MINARI_DATASETS_PATH"] = scratch
        try:
            # Minari warns of every publication field (author, e-mail, ...) that is not filled in.
            warnings.filterwarnings("ignore", module="minari")
            create_dataset_from_buffers(
                dataset_id(config),
                [buffer(index, *episode) for index, episode in enumerate(episodes)],
                observation_space=gymnasium.spaces.Box(
                    -np.inf, np.inf, (observation_size,), np.float32
                ),
                action_space=gymnasium.spaces.Box(-1.0, 1.0, episodes[0][1].shape[1:], np.float32),
                algorithm_name=f"OGBench {config.dataset} procedure, seed {config.data_seed}",
                description=f"{config.steps} steps in {config.name}; regenerated, not the original",
            )
        finally:
            if previous is None:
                del os.environ["MINARI_DATASETS_PATH"]
            else:
                os.environ["MINARI_DATASETS_PATH"] = previous
        written = Path(scratch) / dataset_id(config)
        try:
            written.rename(path)
        except OSError:  # another process finished first; its data is the same
            if not path.is_dir():
                raise
