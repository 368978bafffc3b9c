"""Data sets on disk: generated once, whole or not at all, alike on any number of cores."""

import multiprocessing
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lmdiff.config import TaskConfig
from lmdiff.data import episodes as module
from lmdiff.data.episodes import data_folder, dataset_id, load_or_generate
from lmdiff.errors import UserError
from lmdiff.tasks.pointmaze import PointMaze
from lmdiff.tasks.pointmaze_expert import Expert

CONFIG = TaskConfig(name="pointmaze-medium", dataset="stitch", steps=1000, data_seed=4)


class _OneProcess:
    """Stands in for the pool: starting processes takes seconds."""

    def __init__(self, *_, **__) -> None: ...

    def __enter__(self) -> "_OneProcess":
        return self

    def __exit__(self, *_) -> None: ...

    map = staticmethod(map)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMDIFF_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ProcessPoolExecutor", _OneProcess)


@pytest.mark.usefixtures("in_process")
def test_what_comes_from_disk_is_what_the_expert_did(folder: Path) -> None:
    first = load_or_generate(CONFIG, quiet=True)
    expert = Expert(PointMaze(CONFIG.name))
    assert len(first.actions) == 5  # 201 steps each: as many as reach 1000
    assert first.steps == 1005
    for index, (observations, actions) in enumerate(
        zip(first.observations, first.actions, strict=True)
    ):
        wanted = expert.episode("stitch", 4, index)
        np.testing.assert_array_equal(observations, wanted[0])
        np.testing.assert_array_equal(actions, wanted[1])
        assert observations.dtype == actions.dtype == np.float32
    assert (folder / dataset_id(CONFIG)).is_dir()
    assert [path.name for path in (folder / "lmdiff").iterdir()] == [CONFIG_NAME]


CONFIG_NAME = "pointmaze-medium-stitch-1000steps-seed4-v0"


@pytest.mark.usefixtures("in_process")
def test_a_second_time_nothing_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_or_generate(CONFIG, quiet=True)
    monkeypatch.setattr(module, "_generate", None)
    second = load_or_generate(CONFIG, quiet=True)
    for a, b in zip(first.observations, second.observations, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("in_process")
def test_other_settings_are_other_data() -> None:
    names = {
        dataset_id(TaskConfig(name=name, dataset=dataset, steps=steps, data_seed=seed))
        for name in ("pointmaze-medium", "pointmaze-large")
        for dataset in ("navigate", "stitch")
        for steps in (1, 2)
        for seed in (0, 1)
    }
    assert len(names) == 16


def test_workers_do_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes: one, then three."""
    found = []
    for workers in (1, 3):
        monkeypatch.setattr(os, "cpu_count", lambda workers=workers: workers)
        found.append(load_or_generate(CONFIG, quiet=True))
        shutil.rmtree(folder)
    for part in ("observations", "actions"):
        for a, b in zip(getattr(found[0], part), getattr(found[1], part), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interrupted_generation_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    import minari

    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    original = minari.create_dataset_from_buffers

    def interrupted(*arguments, **options):
        original(*arguments, **options)  # all is written, but not yet in its place
        raise interruption

    monkeypatch.setattr(minari, "create_dataset_from_buffers", interrupted)
    with pytest.raises(interruption):
        load_or_generate(CONFIG, quiet=True)
    assert list((folder / "lmdiff").iterdir()) == []
    assert "MINARI_DATASETS_PATH" not in os.environ
    monkeypatch.setattr(minari, "create_dataset_from_buffers", original)
    assert load_or_generate(CONFIG, quiet=True).steps == 1005


@pytest.mark.usefixtures("in_process")
def test_another_process_may_finish_first(folder: Path) -> None:
    load_or_generate(CONFIG, quiet=True)
    path = folder / dataset_id(CONFIG)
    expert = Expert(PointMaze(CONFIG.name))
    module._write(CONFIG, path, [expert.episode("stitch", 4, 0)])
    assert load_or_generate(CONFIG, quiet=True).steps == 1005
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def _truncate(data: Path) -> None:
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])


def _garble(data: Path) -> None:
    data.write_bytes(b"not a data set")


def _zero_middle(data: Path) -> None:
    whole = bytearray(data.read_bytes())
    whole[1000:6000] = bytes(5000)
    data.write_bytes(whole)


def _remove(data: Path) -> None:
    data.unlink()


def _remove_folder(data: Path) -> None:
    shutil.rmtree(data.parent)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("damage", [_truncate, _garble, _zero_middle, _remove, _remove_folder])
def test_a_damaged_file_is_named(folder: Path, damage) -> None:
    load_or_generate(CONFIG, quiet=True)
    path = folder / dataset_id(CONFIG)
    damage(path / "data" / "main_data.hdf5")
    with pytest.raises(UserError) as caught:
        load_or_generate(CONFIG, quiet=True)
    assert f"rm -r {path}" in str(caught.value)


@pytest.mark.usefixtures("in_process")
def test_damaged_metadata_is_named(folder: Path) -> None:
    load_or_generate(CONFIG, quiet=True)
    path = folder / dataset_id(CONFIG)
    _truncate(path / "data" / "metadata.json")
    with pytest.raises(UserError, match=str(path)):
        load_or_generate(CONFIG, quiet=True)


def test_no_steps_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"task\.steps = 0"):
        load_or_generate(TaskConfig(steps=0), quiet=True)
    assert not folder.exists()


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert data_folder() == (tmp_path / "data").resolve()
    monkeypatch.delenv("LMDIFF_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_folder() == (tmp_path / "cache" / "lmdiff" / "data").resolve()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == (Path.home() / ".cache" / "lmdiff" / "data").resolve()


def test_a_process_that_dies_is_named_and_nothing_is_written(folder: Path) -> None:
    """Killed for real, as by a system without memory."""

    def kill() -> None:
        # All of them: Python 3.11 can wait for ever for a worker that starts as another one dies.
        while len(multiprocessing.active_children()) < min(os.cpu_count() or 1, 2):
            time.sleep(0.01)
        time.sleep(0.2)
        for child in multiprocessing.active_children():
            child.kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(UserError, match=r"pointmaze-medium died.*--task\.steps 250"):
        load_or_generate(CONFIG, quiet=True)
    assert not folder.exists()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("raises", r"Episode 2 of pointmaze-medium: the environment raised ValueError\('stuck'"),
        ("hangs", "took more than 0.2 s"),
        ("nan", "returned values that are not finite"),
    ],
)
def test_an_environment_that_fails_while_data_are_generated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, said: str
) -> None:
    original = Expert.episode

    def episode(self: Expert, dataset: str, seed: int, index: int):
        if index != 2:
            return original(self, dataset, seed, index)
        if trouble == "raises":
            raise ValueError("stuck")
        if trouble == "hangs":
            time.sleep(60)
        return np.full((3, 2), np.nan, np.float32), np.zeros((2, 2), np.float32)

    monkeypatch.setattr(Expert, "episode", episode)
    if trouble == "hangs":
        monkeypatch.setattr(module, "_EPISODE_SECONDS", 0.2)
    with pytest.raises(UserError, match=said):
        load_or_generate(CONFIG, quiet=True)
    assert not folder.exists()
