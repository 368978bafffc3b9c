"""Replay: a run's own experience on disk, one file a round, so that it outlives interruptions.

    run_dir/replay/round-00000012.safetensors

A checkpoint knows how many rounds it has seen. A run that goes on from it drops what was played
after it, and plays that again.
"""

import os
import re
from pathlib import Path

from lmdiff.data.recordings import Recording, concatenated, read_recording
from lmdiff.errors import UserError

_NAME = re.compile(r"round-(\d{8,})\.safetensors")


class Replay:
    """The rounds of a run.

    Args:
        folder: of their files; made when the first one is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.recordings: list[Recording] = []

    @property
    def everything(self) -> Recording:
        """All rounds as one recording."""
        return concatenated(self.recordings)

    def rewind(self, rounds: int, *, delete: bool = True) -> None:
        """Go back to the first `rounds` rounds; later ones are deleted.

        Args:
            rounds: that a checkpoint has seen; 0 for a new run.
            delete: whether this process deletes files (one of several does).

        Raises:
            UserError: one of the rounds is missing or damaged.
        """
        if delete and self.folder.is_dir():
            for path in self.folder.iterdir():
                found = _NAME.fullmatch(path.name)
                if path.name.startswith(".tmp-") or (found and int(found[1]) >= rounds):
                    path.unlink()
        paths = [self._path(number) for number in range(rounds)]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise UserError(
                f"{missing[0]} is missing: the run cannot go on without its own experience. Train "
                "again with another --output."
            )
        self.recordings = [read_recording(path) for path in paths]

    def add(self, recording: Recording, *, write: bool = True) -> None:
        """Take in the next round; one of several processes writes it, all keep it in memory."""
        path = self._path(len(self.recordings))
        if write:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".tmp-{path.name}")
            recording.save(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # a checkpoint must not outlive what it has seen
            os.replace(temporary, path)
        self.recordings.append(recording)

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:08d}.safetensors"
