"""Countdown: reach a target from given numbers with + - * / and parentheses.

A prompt is `3 7 25 -> 46`, its completion an expression such as `3*7+25` that uses every number
exactly once. Everything is exact: values are fractions, and what a model wrote is parsed, never
evaluated by Python.

Splits go by a hash of the sorted numbers and the target, so an instance cannot come back with its
numbers in another order; `strict=True` hashes the numbers alone, so that none of a held-out set of
numbers was seen with any target. The peers' task (Jiayi-Pan/Countdown-Tasks-3to4, used by d1) draws
numbers up to 99; our default is smaller, for models that train in minutes.
"""

import ast
import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from lmdiff.errors import UserError
from lmdiff.goals.descriptions import SPLITS, Split
from lmdiff.text.answers import tagged_answer, text_of

ALPHABET = (*"0123456789+-*/() >", *map(str, range(10, 100)))
"""Numbers up to 99 are one token each, as in large models: a small one need not learn first how
digits make a number."""
OPERATORS = "+-*/"
FORMAT_REWARD, RIGHT_REWARD = 0.1, 1.0
"""Of d1, SPG and their successors."""

_MOST_CHARACTERS, _MOST_DIGITS, _MOST_DEPTH = 200, 9, 50
_ALLOWED = re.compile(r"[0-9+\-*/() ]*")  # ASCII: \d and isdigit also take digits of other scripts
_PROMPT = re.compile(r"([0-9]{1,9}(?: [0-9]{1,9}){0,9}) -> (-?[0-9]{1,9})")


def prompt_of(numbers: Sequence[int], target: int) -> str:
    """`3 7 25 -> 46`."""
    return f"{' '.join(map(str, numbers))} -> {target}"


def read_prompt(prompt: str) -> tuple[list[int], int]:
    """Numbers and target of a prompt.

    Raises:
        ValueError: it does not have the form `3 7 25 -> 46`.
    """
    match = _PROMPT.fullmatch(prompt.strip())
    if match is None:
        raise ValueError(f"A Countdown prompt looks like '3 7 25 -> 46', not {prompt[:60]!r}.")
    return [int(n) for n in match[1].split()], int(match[2])


def parse(expression: str) -> ast.expr | None:
    """The syntax tree of an arithmetic expression; None if it is not one.

    Allowed are whole numbers, + - * /, signs and parentheses. Decimal points are not: the peers
    allow them and read "3.5" as the numbers 3 and 5.
    """
    text = expression.strip(" ")
    if not text or len(text) > _MOST_CHARACTERS or not _ALLOWED.fullmatch(text):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if _is_arithmetic(tree, _MOST_DEPTH) else None


def _is_arithmetic(node: ast.expr, depth: int) -> bool:
    """No other node than those of arithmetic, at most `depth` deep. Rules out `**`, `//`, calls."""
    if depth == 0:
        return False
    match node:
        case ast.Constant(value=value):
            return type(value) is int and 0 <= value < 10**_MOST_DIGITS
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            return _is_arithmetic(operand, depth - 1)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            return _is_arithmetic(left, depth - 1) and _is_arithmetic(right, depth - 1)
    return False


def numbers_in(tree: ast.expr) -> list[int]:
    """The numbers of a tree from `parse`."""
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [value for value in constants if isinstance(value, int)]


def value_of(tree: ast.expr) -> Fraction | None:
    """The exact value of a tree from `parse`; None where it divides by zero."""
    if isinstance(tree, ast.Constant):
        return Fraction(str(tree.value))
    if isinstance(tree, ast.UnaryOp):
        value = value_of(tree.operand)
        return -value if value is not None and isinstance(tree.op, ast.USub) else value
    assert isinstance(tree, ast.BinOp)
    left, right = value_of(tree.left), value_of(tree.right)
    if left is None or right is None:
        return None
    match tree.op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case _:
            return left / right if right else None


def is_right(expression: str, numbers: Sequence[int], target: int, use_all: bool = True) -> bool:
    """Whether an expression has the target's value and uses the given numbers, and no others.

    Args:
        expression: what a model wrote.
        numbers: given, each to be used exactly once (d1, SPG).
        target: exactly; the peers allow a difference of 1e-5, for want of exact fractions.
        use_all: False: each number at most once, as on television.
    """
    tree = parse(expression)
    if tree is None:
        return False
    used, given = sorted(numbers_in(tree)), sorted(numbers)
    if use_all and used != given:
        return False
    if any(used.count(n) > given.count(n) for n in used):
        return False
    return value_of(tree) == target


@lru_cache(maxsize=4096)
def reachable(numbers: tuple[int, ...], operators: str = OPERATORS) -> dict[int, str]:
    """Every positive whole target of sorted numbers, with the simplest expression that reaches it.

    The simplest has the fewest characters, then divides and multiplies least, then comes first in
    the order of its characters: one answer an instance, so that fine-tuning has a clear lesson.
    """
    best: dict[int, str] = {}
    for value, text, _ in _expressions(numbers, operators):
        known = best.get(value)
        if known is None or _simplicity(text) < _simplicity(known):
            best[value] = text
    return best


def _simplicity(text: str) -> tuple[int, int, int, str]:
    return len(text), text.count("/"), text.count("*"), text


_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


@lru_cache(maxsize=65536)
def _expressions(numbers: tuple[int, ...], operators: str) -> tuple[tuple[int, str, int], ...]:
    """(value, simplest text, precedence of its last operation) of all trees over sorted numbers.

    Values stay whole and positive on the way, as people play it; a value is kept once for each
    precedence, since parentheses depend on it.
    """
    if len(numbers) == 1:
        return ((numbers[0], str(numbers[0]), 3),)
    best: dict[tuple[int, int], str] = {}
    for left, right in _halves(numbers):
        pairs = itertools.product(_expressions(left, operators), _expressions(right, operators))
        for (a, text_a, rank_a), (b, text_b, rank_b) in pairs:
            for symbol, value in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a // b)):
                if symbol not in operators or value <= 0 or (symbol == "/" and a % b):
                    continue
                rank = _PRECEDENCE[symbol]
                # The right operand of - and / needs parentheses at equal precedence, too.
                first = f"({text_a})" if rank_a < rank else text_a
                tight = rank_b < rank or (rank_b == rank and symbol in "-/")
                text = f"{first}{symbol}({text_b})" if tight else f"{first}{symbol}{text_b}"
                known = best.get((value, rank))
                if known is None or _simplicity(text) < _simplicity(known):
                    best[value, rank] = text
    return tuple((value, text, rank) for (value, rank), text in best.items())


def _halves(numbers: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every way to share numbers between two operands, in this order; neither goes empty."""
    places = range(len(numbers))
    for size in range(1, len(numbers)):
        for chosen in itertools.combinations(places, size):
            left = tuple(numbers[i] for i in chosen)
            yield left, tuple(numbers[i] for i in places if i not in chosen)


def split_of(numbers: Sequence[int], target: int, strict: bool = False) -> Split:
    """The split of an instance: eight tenths train, one validation, one held out, by a hash."""
    key = f"{sorted(numbers)}" if strict else f"{sorted(numbers)} -> {target}"
    tenth = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return "held_out" if tenth == 0 else "validation" if tenth == 1 else "train"


def instances(
    split: Split,
    count: int,
    numbers: int = 3,
    seed: int = 0,
    largest: int = 25,
    largest_target: int = 99,
    strict: bool = False,
    operators: str = OPERATORS,
) -> list[dict[str, Any]]:
    """Distinct solvable instances of a split.

    Numbers are drawn evenly from 1 to `largest`, then one of their reachable targets. To train on,
    the same numbers in another order are another instance.

    Args:
        split: train, validation or held_out.
        count: how many.
        numbers: 3 or 4 given numbers.
        seed: the same seed gives the same instances, and more of them begin with the same.
        largest: number that is given.
        largest_target: that is asked for.
        strict: see `split_of`.
        operators: that are enough to reach the target; an answer may use the others, too.

    Returns:
        Rows of prompt, completion (the simplest solution), numbers (in the prompt's order), target.

    Raises:
        UserError: sizes out of range, or so many different instances were not found.
    """
    if split not in SPLITS:
        raise UserError(f"No split {split!r}: choose one of {', '.join(SPLITS)}.")
    if numbers not in (3, 4) or not 1 <= largest <= 999 or not 1 <= largest_target <= 9999:
        raise UserError(
            f"Countdown with numbers = {numbers}, largest = {largest}, largest_target = "
            f"{largest_target}: 3 or 4 numbers up to 999 and targets up to 9999 are possible."
        )
    settings = [split, numbers, seed, largest, largest_target, strict]
    # As it was before there was a choice of operators: the same seed gives the same instances.
    settings += [operators] * (operators != OPERATORS)
    rng = random.Random(f"countdown {' '.join(map(str, settings))}")
    rows: dict[tuple[tuple[int, ...], int], dict[str, Any]] = {}
    while len(rows) < count:
        for _ in range(2000):
            drawn = [rng.randint(1, largest) for _ in range(numbers)]
            ordered = tuple(sorted(drawn))
            key = tuple(drawn) if split == "train" else ordered
            if strict and split_of(drawn, 0, strict) != split:
                continue
            ways = reachable(ordered, operators)
            targets = [
                target
                for target in sorted(ways)
                if target <= largest_target
                and (key, target) not in rows
                and split_of(drawn, target, strict) == split
            ]
            if targets:
                target = rng.choice(targets)
                rows[key, target] = {
                    "prompt": prompt_of(drawn, target),
                    "completion": ways[target],
                    "numbers": drawn,
                    "target": target,
                }
                break
        else:
            raise UserError(
                f"Only {len(rows)} different Countdown instances were found in {split}, not "
                f"{count}: ask for fewer, or allow larger numbers."
            )
    return list(rows.values())


def _instances_of(
    prompts: Sequence[Any], columns: Mapping[str, Any]
) -> list[tuple[list[int], int]]:
    """From the columns `numbers` and `target` where the data has them, else from the prompts."""
    if "numbers" in columns and "target" in columns:
        pairs = zip(columns["numbers"], columns["target"], strict=True)
        return [([int(n) for n in numbers], int(target)) for numbers, target in pairs]
    return [read_prompt(text_of(prompt)) for prompt in prompts]


def countdown_reward(
    prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float]:
    """Reward `countdown`: 1 for a right answer, 0.1 for a wrong one, 0 for none (d1, SPG).

    An answer is what stands in the last `<answer>`. Plain text (our own small models) is an answer
    if it is an expression at all: else every text would earn the 0.1.
    """
    rewards = []
    for (numbers, target), completion in zip(
        _instances_of(prompts, columns), completions, strict=True
    ):
        text = text_of(completion)
        tagged = tagged_answer(text)
        answer = text if tagged is None else tagged.strip()
        if is_right(answer, numbers, target):
            rewards.append(RIGHT_REWARD)
        else:
            rewards.append(FORMAT_REWARD if tagged is not None or parse(answer) else 0.0)
    return rewards


def countdown_solved(
    prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
) -> list[float]:
    """Reward `countdown_solved`: 1 for a right answer, else 0."""
    rewards = countdown_reward(prompts, completions, **columns)
    return [float(reward == RIGHT_REWARD) for reward in rewards]
