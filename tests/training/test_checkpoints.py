import builtins
import json
import os
import warnings

import pytest
import torch

from lmdiff.errors import UserError
from lmdiff.training import checkpoints, files
from lmdiff.training.checkpoints import (
    CheckpointDamaged,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)

STATE = {"updates": 3, "rate": 0.1 + 0.2, "name": "é"}


def tensors(step):
    weight = torch.arange(6.0).reshape(2, 3) + step
    shared = torch.randn(4, generator=torch.Generator().manual_seed(step))
    return {
        "module": {"weight": weight, "transposed": weight.T, "half": weight.bfloat16()},
        "ema": {"a": shared, "tied": shared, "empty": torch.zeros(0)},
        "optimizer": {"step/weight": torch.tensor(float(step))},
    }


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for group in expected:
        assert found[group].keys() == expected[group].keys()
        for name, tensor in expected[group].items():
            assert found[group][name].dtype == tensor.dtype
            assert torch.equal(found[group][name], tensor), name


def steps(run_dir):
    return [step for step, _ in list_checkpoints(run_dir)]


def test_round_trip_is_bit_exact(tmp_path):
    path = save_checkpoint(tmp_path, 7, tensors(7), STATE)
    assert path == tmp_path / "checkpoints" / "step-00000007"
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.state) == (7, STATE)
    assert_equal(loaded.tensors, tensors(7))


def test_nothing_saved_is_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_keeps_the_newest(tmp_path, keep, left):
    for step in range(1, 5):
        save_checkpoint(tmp_path, step, tensors(step), STATE, keep)
    assert steps(tmp_path) == left


def test_a_whole_checkpoint_is_not_overwritten(tmp_path):
    save_checkpoint(tmp_path, 1, tensors(1), STATE)
    with pytest.raises(UserError, match="does not overwrite"):
        save_checkpoint(tmp_path, 1, tensors(2), STATE)


def test_a_damaged_one_makes_room(tmp_path):
    path = save_checkpoint(tmp_path, 1, tensors(1), STATE)
    (path / "state.json").write_text("{")
    assert_equal(
        load_checkpoint(save_checkpoint(tmp_path, 1, tensors(1), STATE)).tensors, tensors(1)
    )


NAMES = ["module.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"]


@pytest.fixture
def two(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, tensors(step), STATE)
    return tmp_path


def assert_falls_back(run_dir, reason):
    with pytest.raises(CheckpointDamaged, match=reason):
        load_checkpoint(run_dir / "checkpoints" / "step-00000002")
    with pytest.warns(UserWarning, match=rf"step-00000002 is damaged: .*{reason}"):
        found = latest_checkpoint(run_dir)
    assert found is not None
    assert found.step == 1
    assert_equal(found.tensors, tensors(1))


@pytest.mark.parametrize("name", [*NAMES, "manifest.json"])
class TestDamage:
    def test_every_flipped_byte(self, two, name):
        path = two / "checkpoints" / "step-00000002"
        whole = (path / name).read_bytes()
        for at in range(len(whole)):
            for bit in (0x01, 0x20) if at % 7 == 0 else (0x01,):
                flipped = bytearray(whole)
                flipped[at] ^= bit
                (path / name).write_bytes(flipped)
                with pytest.raises(CheckpointDamaged):
                    load_checkpoint(path)
        (path / name).write_bytes(flipped)
        assert_falls_back(two, ".")

    def test_truncated(self, two, name):
        path = two / "checkpoints" / "step-00000002" / name
        path.write_bytes(path.read_bytes()[:-1])
        assert_falls_back(two, name)

    def test_emptied(self, two, name):
        (two / "checkpoints" / "step-00000002" / name).write_bytes(b"")
        assert_falls_back(two, name)

    def test_deleted(self, two, name):
        (two / "checkpoints" / "step-00000002" / name).unlink()
        assert_falls_back(two, f"{name} is missing")

    def test_symlink(self, two, name):
        path = two / "checkpoints" / "step-00000002" / name
        path.rename(two / "elsewhere")
        path.symlink_to(two / "elsewhere")
        assert_falls_back(two, f"{name} is not a plain file")

    def test_directory(self, two, name):
        path = two / "checkpoints" / "step-00000002" / name
        path.unlink()
        path.mkdir()
        assert_falls_back(two, f"{name} is not a plain file")


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "pytorch_model.bin", "x.safetensors"])
def test_extra_files_are_refused(two, name):
    (two / "checkpoints" / "step-00000002" / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert_falls_back(two, "does not belong there")


@pytest.mark.parametrize(
    "name", ["../module.safetensors", "/etc/passwd", "a/b.safetensors", "x.pkl"]
)
def test_unsafe_names_are_refused(two, name):
    path = two / "checkpoints" / "step-00000002" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = manifest["files"]["module.safetensors"]
    path.write_text(files.to_json(manifest))
    assert_falls_back(two, "unsafe file name")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "1", '{"format": 1}\n', "\xff"])
def test_hostile_json(two, text):
    path = two / "checkpoints" / "step-00000002" / "manifest.json"
    path.write_text(text, encoding="latin-1")
    assert_falls_back(two, "manifest.json")


def test_linked_checkpoint_is_refused(two):
    root = two / "checkpoints"
    (root / "step-00000001").rename(two / "real")
    (root / "step-00000001").symlink_to(two / "real", target_is_directory=True)
    with pytest.raises(CheckpointDamaged, match="not a directory"):
        load_checkpoint(root / "step-00000001")


def test_all_damaged_is_an_error(two):
    for _, path in list_checkpoints(two):
        (path / "state.json").unlink()
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CheckpointDamaged, match="no older one is whole"),
    ):
        latest_checkpoint(two)


class Crash(BaseException):
    """Stands for the process's death: nothing may clean up after it."""


class CrashAt:
    """Lets `count` calls of the functions that touch the disk pass, and dies at the next."""

    def __init__(self, monkeypatch, count, error=Crash):
        self.count, self.calls, self.error = count, 0, error
        for owner, name in (
            (os, "fsync"),
            (os, "replace"),
            (os, "open"),
            (os, "rmdir"),
            (os, "unlink"),
            (builtins, "open"),
            (checkpoints, "save_file"),
        ):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, function):
        def call(*arguments, **keywords):
            self.calls += 1
            if self.calls > self.count:
                raise self.error(28, "No space left on device")
            return function(*arguments, **keywords)

        return call


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("error", [Crash, OSError])
def test_interrupted_at_every_call(tmp_path, keep, error):
    """Wherever a save dies, what was saved before can be loaded, and the next save works."""
    count, finished = 0, False
    while not finished:
        run_dir = tmp_path / str(count)
        for step in (1, 2):
            save_checkpoint(run_dir, step, tensors(step), STATE, keep)
        with pytest.MonkeyPatch.context() as monkeypatch:
            crash = CrashAt(monkeypatch, count, error)
            try:
                save_checkpoint(run_dir, 3, tensors(3), STATE, keep)
                finished = True
            except (Crash, UserError):
                assert crash.calls > count
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing half-written is ever seen
            found = latest_checkpoint(run_dir)
        assert found is not None
        assert found.step in ((3,) if finished else (2, 3))
        assert_equal(found.tensors, tensors(found.step))
        save_checkpoint(run_dir, 4, tensors(4), STATE, keep)
        assert steps(run_dir) == ([4] if keep == 1 else [found.step, 4])
        assert not list((run_dir / "checkpoints").glob(".tmp-*"))
        count += 1
    assert count > 20


def test_disk_trouble_is_explained(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, tensors(1), STATE)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match=r"No space left.*--resume"):
        save_checkpoint(tmp_path, 2, tensors(2), STATE)
    assert steps(tmp_path) == [1]
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))
