"""BabyAI's missions as goal keys: their grammar, and the way to minigrid's instructions and back.

A key is the environment's own wording with "the" throughout: minigrid says "a red ball" where the
room has several, and means the same by it.
"""

from dataclasses import dataclass
from typing import Literal

from minigrid.core.constants import COLOR_NAMES
from minigrid.envs.babyai.core.verifier import (
    LOC_NAMES,
    OBJ_TYPES_NOT_DOOR,
    ActionInstr,
    GoToInstr,
    Instr,
    ObjDesc,
    OpenInstr,
    PickupInstr,
    PutNextInstr,
)

Verb = Literal["go to", "pick up", "open", "put"]

_WHERE = {
    "left": "on your left",
    "right": "on your right",
    "front": "in front of you",
    "behind": "behind you",
}


@dataclass(frozen=True)
class Thing:
    """A description: "the red ball on your left". Color and location may be left open."""

    kind: str
    color: str | None = None
    location: str | None = None
    """One of minigrid's LOC_NAMES, seen from where the agent stands when it is told."""

    def __str__(self) -> str:
        color = f"{self.color} " if self.color else ""
        location = f" {_WHERE[self.location]}" if self.location else ""
        return f"the {color}{self.kind}{location}"

    def description(self) -> ObjDesc:
        return ObjDesc(self.kind, self.color, self.location)

    @staticmethod
    def of(description: ObjDesc) -> "Thing":
        return Thing(description.type, description.color, description.loc)


@dataclass(frozen=True)
class Mission:
    """What is asked. `str` gives its goal key."""

    verb: Verb
    thing: Thing
    beside: Thing | None = None
    """Where to put it next to; only with the verb "put"."""

    def __str__(self) -> str:
        beside = f" next to {self.beside}" if self.beside else ""
        return f"{self.verb} {self.thing}{beside}"

    def instruction(self) -> ActionInstr:
        """The instruction of minigrid, which verifies the mission after `reset_verifier`."""
        description = self.thing.description()
        if self.beside:
            return PutNextInstr(description, self.beside.description())
        instruction = {"go to": GoToInstr, "pick up": PickupInstr, "open": OpenInstr}
        return instruction[self.verb](description)

    @staticmethod
    def of(instruction: Instr) -> "Mission":
        """The mission of a minigrid instruction.

        Raises:
            ValueError: an instruction of another kind, such as a sequence.
        """
        match instruction:
            case GoToInstr():
                return Mission("go to", Thing.of(instruction.desc))
            case PickupInstr():
                return Mission("pick up", Thing.of(instruction.desc))
            case OpenInstr():
                return Mission("open", Thing.of(instruction.desc))
            case PutNextInstr():
                moved, fixed = instruction.desc_move, instruction.desc_fixed
                return Mission("put", Thing.of(moved), Thing.of(fixed))
        raise ValueError(f"No mission of one clause: {instruction!r}")


_COLORED = tuple(Thing(kind, color) for kind in OBJ_TYPES_NOT_DOOR for color in COLOR_NAMES)
_LOCATED = tuple(
    Thing(kind, color, location)
    for kind in OBJ_TYPES_NOT_DOOR
    for color in (None, *COLOR_NAMES)
    for location in (None, *LOC_NAMES)
)
_GO_TO = tuple(Mission("go to", thing) for thing in _COLORED)


@dataclass(frozen=True)
class Level:
    """A BabyAI level: its id in minigrid, and all missions that it can give."""

    id: str
    missions: tuple[Mission, ...]
    doors: bool = False
    """Whether it has several rooms, with (unlocked) doors between them."""


LEVELS = {
    "babyai-goto-obj": Level("BabyAI-GoToObj-v0", _GO_TO),
    "babyai-goto-local": Level("BabyAI-GoToLocal-v0", _GO_TO),
    "babyai-goto": Level("BabyAI-GoTo-v0", _GO_TO, doors=True),
    "babyai-pickup-loc": Level(
        "BabyAI-PickupLoc-v0", tuple(Mission("pick up", thing) for thing in _LOCATED)
    ),
    "babyai-put-next-local": Level(
        "BabyAI-PutNextLocal-v0",
        tuple(Mission("put", a, b) for a in _COLORED for b in _COLORED if a != b),
    ),
    "babyai-open": Level(
        "BabyAI-Open-v0",
        tuple(Mission("open", Thing("door", color)) for color in COLOR_NAMES),
        doors=True,
    ),
}
