"""What the disk refuses, said plainly: it is full, read-only, or not ours to write to."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lmdiff.errors import UserError

_REFUSALS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # full, over a quota, over a limit of the process
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO),
}


@contextmanager
def telling_of_the_disk(folder: Path) -> Iterator[None]:
    """A block that writes to the run in `folder`; other errors of the system pass through.

    Raises:
        UserError: the disk refused.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in _REFUSALS:
            raise
        again = "run the command again"
        if (folder / "run.json").exists():
            again = f"go on with: lmdiff train --resume {folder}"
        raise UserError(
            f"The disk refused: {error}. Checkpoints that were saved in {folder} before are "
            f"intact. Free some space or mend the permissions, then {again}"
        ) from error
