"""Reward functions: found by name, called with TRL's arguments, checked, and added up.

    f(prompts, completions, **columns) -> list[float | None]

`columns` holds the data's other columns, a list each; None means that a reward does not apply to
that sample. What a model wrote reaches these functions as text and is nowhere executed. A dotted
name imports a module of the user's: take it from a command line or a recipe of one's own, never
from a downloaded agent.
"""

import asyncio
import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lmdiff.errors import UserError
from lmdiff.text import countdown, sudoku
from lmdiff.time_limits import TimeUp, call_within

RewardFunction = Callable[..., Any]

NAMED: dict[str, RewardFunction] = {
    "sudoku": sudoku.sudoku_reward,
    "sudoku_solved": sudoku.sudoku_solved,
    "countdown": countdown.countdown_reward,
    "countdown_solved": countdown.countdown_solved,
}


@dataclass(frozen=True)
class RewardSettings:
    """What happens when a reward function fails."""

    time_limit: float = 60.0
    """Seconds for one call (a whole batch; one sample, when samples are tried one by one)."""
    on_error: Literal["stop", "drop"] = "stop"
    """`stop`: a clear error. `drop`: the samples that fail are left out and counted."""

    def __post_init__(self):
        if self.on_error not in ("stop", "drop"):
            raise UserError(f"on_error = {self.on_error!r}: choose stop or drop.")
        if not 0 < self.time_limit < math.inf:
            raise UserError(f"time_limit = {self.time_limit}: a number of seconds above 0.")


@dataclass(frozen=True)
class Scores:
    """Rewards of B samples."""

    total: list[float | None]
    """[B] weighted sums over the functions that apply; None where none does, or where a function
    failed: half a sum would not compare with the others of its group."""
    by_function: dict[str, list[float | None]]
    """Each function's own [B], without weights."""
    dropped: dict[str, int] = field(default_factory=dict)
    """How many samples each function failed on (only with `on_error="drop"`)."""


class RewardFailure(UserError):  # noqa: N818
    """A reward function raised, ran out of time, or returned what is no reward."""


def load_rewards(
    sources: Sequence[str | RewardFunction] | str | RewardFunction,
) -> dict[str, RewardFunction]:
    """Reward functions by the names under which they are logged.

    Args:
        sources: functions; names from `NAMED`; or dotted names `package.module:function`.

    Raises:
        UserError: unknown, not importable, not callable, or two of one name.
    """
    if isinstance(sources, str) or callable(sources):
        sources = [sources]
    found: dict[str, RewardFunction] = {}
    for source in sources:
        function = _load(source) if isinstance(source, str) else source
        if not callable(function):
            raise UserError(f"The reward {source!r} is not a function.")
        name = source if isinstance(source, str) and source in NAMED else _name(function)
        if name in found:
            raise UserError(f"Two rewards are named {name!r}: rename one, they are logged by name.")
        found[name] = function
    if not found:
        raise UserError(f"No reward was given. Known: {', '.join(NAMED)}; or module:function.")
    return found


def _name(function: RewardFunction) -> str:
    # functools.partial and callable objects have no name of their own.
    inner = getattr(function, "func", function)
    return getattr(inner, "__name__", type(inner).__name__)


def _load(source: str) -> RewardFunction:
    if source in NAMED:
        return NAMED[source]
    module_name, colon, path = source.partition(":")
    if not colon or not module_name or not path:
        raise UserError(
            f"No reward {source!r}. Known: {', '.join(NAMED)}; or write package.module:function."
        )
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"The reward {source!r} cannot be imported: {error}. If its file lies in this folder, "
            "start with: PYTHONPATH=. lmdiff ..."
        ) from error
    except Exception as error:
        raise UserError(f"The reward {source!r} cannot be imported: {error!r}") from error
    for part in path.split("."):
        try:
            target = getattr(target, part)
        except AttributeError as error:
            raise UserError(f"The reward {source!r}: {module_name} has no {path!r}.") from error
    return target


def score(
    rewards: Mapping[str, RewardFunction],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]] | None = None,
    weights: Sequence[float] | None = None,
    settings: RewardSettings | None = None,
) -> Scores:
    """Call every reward function on B samples and add up.

    Args:
        rewards: from `load_rewards`.
        prompts: B prompts.
        completions: B completions, as text (or conversations).
        columns: the data's other columns, B values each.
        weights: one a function; 1 each by default.
        settings: what happens when one fails.

    Raises:
        RewardFailure: with `on_error="stop"`; names the function, the sample and the reason.
        UserError: sizes that do not fit.
    """
    settings = settings or RewardSettings()
    columns = columns or {}
    weights = check_weights(rewards, weights)
    for name, values in {"completions": completions, **columns}.items():
        if len(values) != len(prompts):
            raise UserError(f"{len(prompts)} prompts, but {len(values)} values of {name}.")
    by_function: dict[str, list[float | None]] = {}
    failed: dict[str, set[int]] = {}
    for name, function in rewards.items():
        samples = _Samples(prompts, completions, columns)
        by_function[name], failed[name] = _rewards_of(name, function, samples, settings)
    lost = set[int]().union(*failed.values())
    total: list[float | None] = []
    for i in range(len(prompts)):
        parts = [
            weight * value
            for weight, values in zip(weights, by_function.values(), strict=True)
            if (value := values[i]) is not None
        ]
        total.append(sum(parts) if parts and i not in lost else None)
    return Scores(total, by_function, {name: len(rows) for name, rows in failed.items() if rows})


def check_weights(
    rewards: Mapping[str, RewardFunction], weights: Sequence[float] | None
) -> list[float]:
    """One finite weight a function; 1 each by default.

    Raises:
        UserError: another number of them, or one that is not finite.
    """
    if weights is None:
        return [1.0] * len(rewards)
    if len(weights) != len(rewards) or not all(map(math.isfinite, weights)):
        raise UserError(f"reward_weights = {list(weights)}: give one for each of {list(rewards)}.")
    return list(weights)


@dataclass(frozen=True)
class _Samples:
    prompts: Sequence[Any]
    completions: Sequence[Any]
    columns: Mapping[str, Sequence[Any]]

    def row(self, i: int) -> "_Samples":
        columns = {name: [values[i]] for name, values in self.columns.items()}
        return _Samples([self.prompts[i]], [self.completions[i]], columns)


def _rewards_of(
    name: str, function: RewardFunction, samples: _Samples, settings: RewardSettings
) -> tuple[list[float | None], set[int]]:
    """Rewards of all samples, None where the function failed, and those samples."""
    count = len(samples.prompts)
    values, reasons = _call(name, function, samples, settings.time_limit)
    if not reasons:
        return values, set()
    if settings.on_error == "stop":
        raise RewardFailure(next(iter(reasons.values())))
    if None in reasons and count > 1:
        # The call as a whole failed: which sample it was shows when each is tried alone.
        values, reasons = [], {}
        for i in range(count):
            value, why = _call(name, function, samples.row(i), settings.time_limit)
            values += value
            if why:
                reasons[i] = next(iter(why.values()))
    failed = {0 if i is None else i for i in reasons}
    if failed:
        reason = next(iter(reasons.values()))
        warnings.warn(f"{reason} {len(failed)} of {count} samples are left out.", stacklevel=4)
    return values, failed


def _call(
    name: str, function: RewardFunction, samples: _Samples, time_limit: float
) -> tuple[list[float | None], dict[int | None, str]]:
    """One call: values (None where it failed) and what went wrong, by sample (None: all of it)."""
    count = len(samples.prompts)
    nothing: list[float | None] = [None] * count

    def run() -> Any:
        found = function(
            prompts=list(samples.prompts),
            completions=list(samples.completions),
            **{key: list(values) for key, values in samples.columns.items()},
        )
        return asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found

    try:
        found = call_within(time_limit, run)
    except TimeUp:
        reason = f"The reward {name!r} took longer than its limit of {time_limit:g} s."
        return nothing, {None: reason}
    except (Exception, SystemExit) as error:
        return nothing, {None: f"The reward {name!r} raised {type(error).__name__}: {error}"}
    if hasattr(found, "tolist"):  # NumPy arrays and tensors
        found = found.tolist()
    if not isinstance(found, (list, tuple)) or len(found) != count:
        got = f"{len(found)} values" if isinstance(found, (list, tuple)) else type(found).__name__
        return nothing, {None: f"The reward {name!r} returned {got} for {count} completions."}
    values, reasons = [], {}
    for i, value in enumerate(found):
        number = _number(value)
        if value is not None and number is None:
            reasons[i] = f"The reward {name!r} returned {value!r:.80} for sample {i}."
        values.append(number)
    return values, reasons


async def _awaited(found: Any) -> Any:
    return await found


def _number(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    if value is None or isinstance(value, (str, bytes)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None
