"""The values that a number in a recipe may have, stated beside its type and checked in one place.

    width: Count = 128              # at least 1
    condition_dropout: Share = 0.1  # 0 to 1

A senseless number would otherwise be found deep inside a library, or train without a word.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from lmdiff.errors import UserError


@dataclass(frozen=True)
class Range:
    """From `least` to `most`, both included unless they are said to be `open`."""

    least: float
    most: float = math.inf
    open: bool = False
    """`least` itself is not allowed."""
    open_above: bool = False
    """`most` itself is not allowed."""

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        above = value > self.least if self.open else value >= self.least
        return above and (value < self.most if self.open_above else value <= self.most)

    def __str__(self) -> str:
        if self.least == -math.inf:
            return "a finite number"
        least = f"above {self.least:g}" if self.open else f"at least {self.least:g}"
        if self.most == math.inf:
            return least
        return f"{least} and {'below' if self.open_above else 'at most'} {self.most:g}"


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**31 - 1)]  # NumPy's and Gymnasium's, some are added to
Positive = Annotated[float, Range(0, open=True)]
NonNegative = Annotated[float, Range(0)]
Finite = Annotated[float, Range(-math.inf)]
Share = Annotated[float, Range(0, 1)]
Fraction = Annotated[float, Range(0, 1, open_above=True)]  # a part that leaves something


def check_ranges(config: Any, where: str = "") -> None:
    """Refuse numbers out of range in a (nested) config dataclass.

    Args:
        config: a dataclass whose numbers are annotated with a `Range`.
        where: its dotted name in the recipe; then the message names the option that mends it.

    Raises:
        UserError: names the first setting that is out of range, and what would be in it.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    usual = {field.name: field for field in dataclasses.fields(config)}
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{where}.{name}" if where else name)
            continue
        for path, wrong, wanted in _out_of_range(hints[name], value, name):
            default = usual[name].default
            mend = ""
            if where and isinstance(default, int | float):
                mend = f" (--{where}.{name}".replace("_", "-") + f" {default:g})"
            dotted = f"{where}.{path}" if where else path
            raise UserError(f"{dotted} = {wrong}: must be {wanted}{mend}.")


def _out_of_range(hint: Any, value: Any, path: str) -> typing.Iterator[tuple[str, float, Range]]:
    """(path, value, range) of each number in `value` that its annotation does not allow."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        for wanted in hint.__metadata__:
            if isinstance(wanted, Range) and value not in wanted:
                yield path, value, wanted
    elif value is None or isinstance(value, str):
        return
    elif isinstance(value, tuple):
        items = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        for index, item in enumerate(value):
            yield from _out_of_range(items[index], item, f"{path}[{index}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _out_of_range(arguments[1], item, f"{path}.{key}")
    elif arguments:  # `Range | None`
        yield from _out_of_range(arguments[0], value, path)
