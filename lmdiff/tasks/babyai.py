"""BabyAI: an agent in a grid sees a part of its room and does what a mission says.

Chevalier-Boisvert et al., "BabyAI: A Platform to Study the Sample Efficiency of Grounded Language
Learning" (2019), as minigrid keeps it. The missions are the environment's own language.
"""

import io
import os
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import gymnasium
import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # minigrid imports pygame, which greets

import minigrid  # noqa: F401  (registers the levels)
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.core.world_object import Door, WorldObj
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import LOC_NAMES, ObjDesc, pos_next_to

from lmdiff.errors import UserError
from lmdiff.tasks.babyai_expert import Expert
from lmdiff.tasks.babyai_missions import LEVELS, Mission, Thing
from lmdiff.tasks.world import World

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
VIEW = 7
"""Cells a side of what the agent sees; it stands in the middle of the last row."""
KINDS = ("empty", "wall", "key", "ball", "box")
DOORS = ("open", "closed")
"""States of doors; only levels with several rooms have doors, none of them locked."""
COLORS = tuple(COLOR_TO_IDX)
SIDES = ("left", "right", "front", "behind")
"""Of the agent; a cell straight ahead is neither left nor right."""


class BabyAI(World):
    """A BabyAI level by its name (`babyai-goto-local`, ...: the keys of LEVELS).

    The agent sees 7 x 7 cells, ahead of it and to its sides, not through walls and closed doors;
    nothing else of the room (partial observability is the environment's). An observation is

    - [7, 7, C] flattened: the view. First axis from left to right, second from far (0) to near (6);
      the agent is at [3, 6], where what it carries is seen, and [3, 5] is the cell before it. C is
      one-hot over KINDS (and DOORS, in levels with doors), then one-hot over COLORS for what has
      a color (not walls). An unseen cell is all zeros. In levels whose missions say where things
      are, four more say on which SIDES of the agent's place and direction when it was told the cell
      lies: a memory of its own moves, without which "on your left" is lost with the first turn;
    - [4]: the direction it faces (right, down, left, up on the picture), one-hot;
    - [7]: the previous action, one-hot; zeros at the start. A turn to look around can then go on
      in the same direction, which a view of bare wall alone does not tell.

    That is 550 numbers without doors (C = 11), 648 with them (C = 13), 746 with SIDES (C = 15).

    Locations in missions ("on your left") are seen from where the agent stands when it is told.
    """

    family = "babyai"
    discrete = True
    swappable = True

    def __init__(self, name: str):
        if name not in LEVELS:
            raise UserError(f"No BabyAI level {name!r}. Known: {', '.join(LEVELS)}.")
        level = LEVELS[name]
        self._missions = {str(mission): mission for mission in level.missions}
        self._codes = _cell_codes(level.doors)
        self._located = any(mission.thing.location for mission in level.missions)
        # Any: minigrid's levels get their instructions after their class was written down.
        self._env: Any = gymnasium.make(level.id, disable_env_checker=True).unwrapped
        with redirect_stdout(io.StringIO()):
            self._env.reset(seed=0)
        self._told = self._stance()
        self.cells = VIEW * VIEW, self._codes.shape[-1] + len(SIDES) * self._located
        size = VIEW * VIEW * self.cells[1] + 4 + len(ACTIONS)
        super().__init__(name, tuple(self._missions), size, len(ACTIONS), self._env.max_steps)
        self._own = ""

    @property
    def mission(self) -> str:
        """What is asked, as minigrid words it in this room."""
        return self._env.mission

    def start(self, seed: int, goal: str | None) -> np.ndarray:
        # minigrid prints each room that it rejects.
        with redirect_stdout(io.StringIO()):
            view, _ = self._env.reset(seed=seed)
        self._own = str(Mission.of(self._env.instrs))
        self._told = self._stance()
        return self._encode(view, None)

    def draw(self) -> str:
        """The mission that minigrid itself gives with this room: the benchmark's distribution."""
        return self._own

    def switch(self, goal: str) -> None:
        super().switch(goal)
        env, mission = self._env, self._missions[goal]
        instruction = mission.instruction()
        env.instrs = instruction
        instruction.reset_verifier(env)
        self._scene, self._told = _Scene(env), self._stance()
        fits = self._scene.fits(mission)
        env.mission = env.surface = instruction.surface(env) if fits else goal
        self._expert = Expert(env)
        self._succeeded = False

    def advance(self, action: np.ndarray) -> np.ndarray:
        index = int(action.argmax())
        view, _, self._succeeded, _, _ = self._env.step(index)
        self._expert.saw(index)
        return self._encode(view, index)

    def achieved(self, goal: str) -> bool:
        """For the goal that is asked, minigrid's verdict on the last step; else by the state.

        The state says more: a door that was opened on the way is open.
        """
        if goal == self.goal:
            return self._succeeded
        return self._scene.achieved(self._missions[goal])

    def possible(self) -> tuple[str, ...]:
        return tuple(
            key
            for key, mission in self._missions.items()
            if self._scene.fits(mission) and not self._scene.achieved(mission)
        )

    def holds(self, observations: np.ndarray) -> np.ndarray | None:
        """Told by the cell before the agent, for "go to" and "open" (a door seen open)."""
        if next(iter(self._missions.values())).verb not in ("go to", "open"):
            return None
        before = (VIEW // 2 * VIEW + VIEW - 2) * self.cells[1]
        cells = observations[:, before : before + self._codes.shape[-1]]
        wanted = [
            self._codes[
                OBJECT_TO_IDX[mission.thing.kind],
                COLOR_TO_IDX[str(mission.thing.color)],
                STATE_TO_IDX["open"],
            ]
            for mission in self._missions.values()
        ]
        return cells @ np.stack(wanted).T > 1.5

    def expert_action(self) -> np.ndarray | None:
        """What minigrid's bot does; None where it is at a loss or the room lacks what is asked."""
        advice = self._expert.advise()
        return None if advice is None else np.eye(len(ACTIONS), dtype=np.float32)[advice]

    def render(self) -> np.ndarray:
        """[H, W, 3] uint8, the whole grid; what the agent sees is lighter."""
        return self._env.get_frame(highlight=True)

    def _encode(self, view: dict[str, Any], previous: int | None) -> np.ndarray:
        image = view["image"]
        cells = self._codes[image[..., 0], image[..., 1], image[..., 2]]
        if self._located:
            seen = image[..., :1] != OBJECT_TO_IDX["unseen"]
            cells = np.concatenate([cells, self._sides() * seen], -1)
        direction = np.eye(4, dtype=np.float32)[view["direction"]]
        action = np.zeros(len(ACTIONS), np.float32)
        if previous is not None:
            action[previous] = 1.0
        return np.concatenate([cells.ravel(), direction, action])

    def _stance(self) -> "_Stance":
        env = self._env
        return _Stance(np.array(env.agent_pos), env.dir_vec.copy(), env.right_vec.copy())

    def _sides(self) -> np.ndarray:
        """[7, 7, SIDES] float32: where each cell of the view lies from where the goal was told."""
        now, told = self._stance(), self._told
        across = np.arange(VIEW)[:, None, None] - VIEW // 2
        ahead = VIEW - 1 - np.arange(VIEW)[None, :, None]
        offset = now.at + across * now.right + ahead * now.front - told.at
        right, front = offset @ told.right, offset @ told.front
        return np.stack([right < 0, right > 0, front > 0, front < 0], -1).astype(np.float32)


class _Stance(NamedTuple):
    """Where the agent stands, and its directions, as vectors of cells."""

    at: np.ndarray
    front: np.ndarray
    right: np.ndarray


def _cell_codes(doors: bool) -> np.ndarray:
    """A code of minigrid's for a cell -> ours: [object, color, state, C]; BabyAI describes C."""
    channels = (*KINDS, *DOORS, *COLORS) if doors else (*KINDS, *COLORS)
    codes = np.zeros(
        (len(OBJECT_TO_IDX), len(COLORS), len(STATE_TO_IDX), len(channels)), np.float32
    )
    for kind in KINDS:
        codes[OBJECT_TO_IDX[kind], :, :, channels.index(kind)] = 1.0
    if doors:
        for state in DOORS:
            codes[OBJECT_TO_IDX["door"], :, STATE_TO_IDX[state], channels.index(state)] = 1.0
    for kind in ("key", "ball", "box", *(["door"] if doors else [])):
        for color in COLORS:
            codes[OBJECT_TO_IDX[kind], COLOR_TO_IDX[color], :, channels.index(color)] = 1.0
    return codes


class _Scene:
    """The objects of a grid when something is told: what is meant by a description."""

    def __init__(self, env: RoomGridLevel):
        self._env = env
        self._objects: list[WorldObj] = [
            cell for cell in env.grid.grid if cell is not None and cell.type != "wall"
        ]
        self._at: dict[str, set[int]] = {}
        for location in LOC_NAMES:
            found, _ = ObjDesc(None, None, location).find_matching_objs(env)
            self._at[location] = {id(cell) for cell in found}

    def fits(self, mission: Mission) -> bool:
        """Whether there is what the mission speaks of."""
        moved = self._meant(mission.thing)
        if mission.beside is None:
            return bool(moved)
        fixed = self._meant(mission.beside)
        return bool(moved and fixed) and not {id(x) for x in moved} & {id(x) for x in fixed}

    def achieved(self, mission: Mission) -> bool:
        """Whether a mission is achieved in the present state of the grid."""
        env, things = self._env, self._meant(mission.thing)
        if mission.verb == "go to":
            before = env.grid.get(*env.front_pos)
            return any(thing is before for thing in things)
        if mission.verb == "pick up":
            return any(thing is env.carrying for thing in things)
        if mission.verb == "open":
            return any(isinstance(thing, Door) and thing.is_open for thing in things)
        assert mission.beside is not None
        fixed = self._meant(mission.beside)
        return any(
            thing is not env.carrying
            and other is not env.carrying
            and pos_next_to(thing.cur_pos, other.cur_pos)
            for thing in things
            for other in fixed
        )

    def _meant(self, thing: Thing) -> list[WorldObj]:
        return [
            found
            for found in self._objects
            if found.type == thing.kind
            and thing.color in (None, found.color)
            and (thing.location is None or id(found) in self._at[thing.location])
        ]
