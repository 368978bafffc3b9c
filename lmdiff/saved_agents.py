"""Where trained agents lie, and of which kind they are. Imports nothing heavy."""

import json
from pathlib import Path
from typing import Literal

from lmdiff.errors import UserError

Kind = Literal["control", "policy", "text"]


def find_agent(source: str) -> Path:
    """The folder of a saved pipeline: itself, its run's folder, or the name of a run in runs/.

    Raises:
        UserError: none of them is there; names the command that trains it.
    """
    candidates = [Path(source), Path(source) / "agent", Path("runs") / source / "agent"]
    for folder in candidates:
        if (folder / "model_index.json").is_file():
            return folder
    for run in (Path(source), Path("runs") / source):
        if (run / "run.json").is_file():
            raise UserError(f"The training in {run} is not finished: lmdiff train --resume {run}")
    raise UserError(
        f"No trained agent {source!r} (looked in {', '.join(map(str, candidates))}). "
        f"Train one: lmdiff train {Path(source).name or 'pointmaze-medium'}"
    )


def kind_of(folder: Path) -> Kind:
    """What a saved agent does: it plans (control), acts (policy) or writes (text).

    Raises:
        UserError: its model_index.json cannot be read.
    """
    path = folder / "model_index.json"
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"The agent in {folder} cannot be loaded: {path.name}: {error}.") from error
    return {"TextPipeline": "text", "PolicyPipeline": "policy"}.get(name, "control")  # pyright: ignore[reportReturnType]
