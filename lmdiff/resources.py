"""Where agents and prompts are found: one resolver for a clone, an editable install and a wheel.

`agents/` and `prompts/` hold data only. A wheel carries them in `lmdiff/_data`; in a clone (or an
editable install) they lie beside the package.
"""

import difflib
from pathlib import Path
from typing import Literal

from lmdiff.errors import UserError

Kind = Literal["agents", "prompts"]

_PACKAGE = Path(__file__).resolve().parent


def folder(kind: Kind) -> Path:
    """The folder of shipped `agents` or `prompts`: package data first, then the clone's own."""
    candidates = (_PACKAGE / "_data" / kind, _PACKAGE.parent / kind)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise UserError(
        f"The folder of {kind} is missing (looked in {', '.join(map(str, candidates))}). "
        "The installation is damaged: pip install --force-reinstall lmdiff"
    )


def names(kind: Kind) -> list[str]:
    """Names of everything shipped of this kind."""
    return sorted(path.stem for path in folder(kind).glob("*.toml"))


def find(kind: Kind, source: str | Path) -> Path:
    """An explicit path if it exists, else the shipped file of that name.

    Raises:
        UserError: neither exists; says what does.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.suffix != ".toml" and path.name == str(source):
        shipped = folder(kind) / f"{source}.toml"
        if shipped.is_file():
            return shipped
    known = names(kind)
    close = difflib.get_close_matches(path.stem, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(
        f"No {kind[:-1]} {str(source)!r}.{hint} Known: {', '.join(known)}; or give a path to a "
        ".toml file."
    )
