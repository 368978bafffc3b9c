"""Worlds by name. A family's simulator is imported when one of its worlds is made."""

from importlib import import_module

from lmdiff.errors import UserError
from lmdiff.tasks.world import World

# Name of a world (or its beginning, with a dash at the end) -> module and what makes it there.
_FAMILIES = {
    "metaworld-": ("lmdiff.tasks.metaworld", "MetaWorld", "sim"),
    "babyai-": ("lmdiff.tasks.babyai", "BabyAI", "grid"),
    "cube-single": ("lmdiff.tasks.tabletop", "Tabletop", "sim"),
    "scene": ("lmdiff.tasks.tabletop", "Tabletop", "sim"),
    "puzzle-3x3": ("lmdiff.tasks.tabletop", "Tabletop", "sim"),
}


def make_world(name: str) -> World:
    """A world by its name, such as `metaworld-mt10`.

    Raises:
        UserError: no such world, or its simulator is not installed.
    """
    for prefix, (module, cls, extra) in _FAMILIES.items():
        if name == prefix or (prefix.endswith("-") and name.startswith(prefix)):
            try:
                return getattr(import_module(module), cls)(name)
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("lmdiff"):
                    raise
                raise UserError(
                    f"{name} needs the package {error.name}: pip install 'lmdiff[{extra}]'"
                ) from error
    known = ", ".join(f"{p}..." if p.endswith("-") else p for p in _FAMILIES)
    raise UserError(f"No world {name!r}. Known: {known}.")
