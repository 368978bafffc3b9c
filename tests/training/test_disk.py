"""A disk that is full, or not ours: a clear error, and the last checkpoint loads.

The kernel itself refuses here: a limit on the size of files, and folders of another user.
"""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from training_toy import Toy, batches, make_config

from lmdiff import cli
from lmdiff.errors import UserError
from lmdiff.training.checkpoints import latest_checkpoint, list_checkpoints
from lmdiff.training.loop import train

RECIPE = """
kind = "text"
[task]
name = "sudoku"
examples = 50
[model]
width = 32
layers = 1
heads = 2
[training]
max_steps = 4
batch_size = 4
checkpoint_every = 2
log_every = 1
"""


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """The system refuses to write beyond `size` bytes of a file (EFBIG), as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere; nobody may not."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that any user may enter; pytest's own may be entered by its owner alone."""
    path = Path(tempfile.mkdtemp(prefix="lmdiff-disk-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def newest_step(run_dir: Path) -> int:
    found = latest_checkpoint(run_dir)
    assert found is not None
    return found.step


def largest_file(run_dir: Path) -> int:
    return max(path.stat().st_size for path in list_checkpoints(run_dir)[-1][1].iterdir())


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("part", [0.1, 0.9])
def test_a_full_disk_stops_the_run_and_costs_no_checkpoint(tmp_path: Path, part: float) -> None:
    """The save of step 10 fails in its first file, or in its largest; then there is space again."""
    whole, run_dir, config = tmp_path / "whole", tmp_path / "run", make_config()
    train(config, Toy(), batches, whole, quiet=True)
    size = int(part * largest_file(whole))

    def filling(step: int):
        if step == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return batches(step)

    with (
        files_at_most(resource.RLIM_INFINITY),
        pytest.raises(UserError, match=r"(Could not save|disk refused).*--resume"),
    ):
        train(config, Toy(), filling, run_dir, quiet=True)
    assert newest_step(run_dir) == 5
    assert not list((run_dir / "checkpoints").glob(".tmp-*"))
    train(config, Toy(), batches, run_dir, resume=True, quiet=True)
    assert newest_step(run_dir) == newest_step(whole) == 20
    assert weights(run_dir) == weights(whole)


def weights(run_dir: Path) -> bytes:
    return (list_checkpoints(run_dir)[-1][1] / "module.safetensors").read_bytes()


def test_a_command_on_a_full_disk_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever the disk ends: in run.json, metrics, a checkpoint, or the saved agent."""
    (tmp_path / "small.toml").write_text(RECIPE)

    def trained(run_dir: Path) -> int:
        words = ["train", str(tmp_path / "small.toml"), "--output", str(run_dir), "--quiet"]
        return cli.main(words)

    assert trained(tmp_path / "whole") == 0
    largest = (tmp_path / "whole" / "agent" / "model" / "model.safetensors").stat().st_size
    capsys.readouterr()
    for size in (10, 600, 3000, largest // 2, largest - 1):
        run_dir = tmp_path / f"run-{size}"
        with files_at_most(size):
            assert trained(run_dir) == 2
        said = capsys.readouterr().err
        assert "lmdiff: The disk refused" in said or "lmdiff: Could not save a checkpoint" in said
        assert "ree some space" in said
        assert "Traceback" not in said
        latest_checkpoint(run_dir)


def test_a_folder_that_may_not_be_written(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shared / "small.toml").write_text(RECIPE)
    run_dir = shared / "run"
    words = ["train", str(shared / "small.toml"), "--output", str(run_dir), "--quiet"]
    shared.chmod(0o555)
    with as_nobody():
        assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("lmdiff: The disk refused")
    assert "Permission denied" in said
    assert "mend the permissions" in said
    assert not run_dir.exists()


def test_a_run_that_became_read_only_keeps_its_checkpoints(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shared / "small.toml").write_text(RECIPE)
    run_dir = shared / "run"
    words = ["--quiet", "--training.lr-schedule", "constant_with_warmup"]
    first = ["train", str(shared / "small.toml"), "--output", str(run_dir), *words]
    assert cli.main(first) == 0
    before = weights(run_dir)
    for path in (run_dir, *run_dir.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    capsys.readouterr()
    with as_nobody():
        more = ["train", "--resume", str(run_dir), "--training.max-steps", "6", *words]
        assert cli.main(more) == 2
    said = capsys.readouterr().err
    assert "lmdiff: The disk refused: " in said
    assert f"go on with: lmdiff train --resume {run_dir}" in said
    assert (newest_step(run_dir), weights(run_dir)) == (4, before)
