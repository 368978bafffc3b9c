"""One trajectory model, many roles: a role says what is given, what is asked, what is absent.

A window has three groups (observation, action, signal) and `horizon` steps. Each entry of a role
covers the first step and the later ones. Given entries enter clean (noise level 0), asked ones are
denoised, absent ones enter as zeros at noise level 1 and cost nothing. See docs and the survey's
function axis: planner, policy, simulator, reward model, explorer.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lmdiff.errors import UserError

GROUPS = ("observation", "action", "signal")
Use = Literal["given", "asked", "absent"]


@dataclass(frozen=True)
class Role:
    """Use of (the first step, the later steps) of each group."""

    observation: tuple[Use, Use]
    action: tuple[Use, Use]
    signal: tuple[Use, Use]
    goal: bool = True
    """Whether the goal is shown."""


ROLES: dict[str, Role] = {
    # Where to be, and how far it still is: trajectory optimisation. Actions are the controller's:
    # they are noisy in the data, and asking for both would blur the plan.
    "planner": Role(("given", "asked"), ("absent", "absent"), ("asked", "asked")),
    # What to do now: policy learning and imitation.
    "policy": Role(("given", "absent"), ("asked", "absent"), ("absent", "absent")),
    # What to do to follow a plan: inverse dynamics. The plan says it all; the goal is hidden.
    "controller": Role(("given", "given"), ("asked", "asked"), ("absent", "absent"), goal=False),
    # What happens if: environment simulation.
    "simulator": Role(("given", "asked"), ("given", "given"), ("asked", "asked")),
    # How well it goes: reward modelling.
    "reward_model": Role(("given", "given"), ("absent", "absent"), ("asked", "asked")),
    # What can happen at all: exploration, with no goal.
    "explorer": Role(("given", "asked"), ("asked", "asked"), ("asked", "asked"), goal=False),
}

_CODES: dict[Use, int] = {"given": 0, "asked": 1, "absent": 2}


def find_role(name: str) -> Role:
    """The role of that name.

    Raises:
        UserError: there is none.
    """
    if name not in ROLES:
        raise UserError(f"No role {name!r}. Known: {', '.join(ROLES)}.")
    return ROLES[name]


@dataclass(frozen=True)
class Masks:
    """Roles of B samples, spelled out."""

    asked: Tensor
    """[B, horizon, 3] bool, groups in the order of GROUPS."""
    absent: Tensor
    """[B, horizon, 3] bool."""
    goal: Tensor
    """[B] bool: whether the goal is shown."""

    def level(self, asked_level: Tensor) -> Tensor:
        """Noise levels [B, horizon, 3] when what is asked has level `asked_level` [B]."""
        level = torch.where(self.asked, asked_level[:, None, None], 0.0)
        return torch.where(self.absent, 1.0, level)


def role_masks(names: list[str], horizon: int, device: torch.device | str = "cpu") -> Masks:
    """Masks of B samples, one role name each.

    Raises:
        UserError: a name is not in ROLES.
    """
    distinct = list(dict.fromkeys(names))
    each = torch.empty(len(distinct), horizon, len(GROUPS), dtype=torch.int8)
    for index, name in enumerate(distinct):
        role = find_role(name)
        for column, (first, later) in enumerate((role.observation, role.action, role.signal)):
            each[index, :, column] = _CODES[later]
            each[index, 0, column] = _CODES[first]
    rows = torch.tensor([distinct.index(name) for name in names], dtype=torch.long)
    codes, goal = each[rows], torch.tensor([ROLES[name].goal for name in names], dtype=torch.bool)
    codes = codes.to(device)
    return Masks(asked=codes == 1, absent=codes == 2, goal=goal.to(device))
