import itertools
import time
from fractions import Fraction

import pytest

from lmdiff.errors import UserError
from lmdiff.goals.descriptions import SPLITS
from lmdiff.text import countdown


def brute_force(numbers):
    """Positive whole values reachable through positive whole values, by merging any two."""
    if len(numbers) == 1:
        return set(numbers)
    found = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        a, b = numbers[i], numbers[j]
        for value in (a + b, a - b, a * b, Fraction(a, b)):
            if value > 0 and Fraction(value).denominator == 1:
                found |= brute_force([*rest, int(value)])
    return found


@pytest.mark.parametrize("numbers", [(3, 7, 25), (1, 1, 2), (2, 2, 4, 6), (5, 5, 5, 5)])
def test_reachable_targets_are_those_of_a_search(numbers):
    ways = countdown.reachable(numbers)
    assert set(ways) == brute_force(list(numbers))
    assert all(countdown.is_right(text, numbers, target) for target, text in ways.items())


@pytest.mark.parametrize("numbers", [3, 4])
def test_instances_are_solved_distinct_and_seeded(numbers):
    rows = countdown.instances("train", 300, numbers, seed=1)
    for row in rows:
        assert countdown.is_right(row["completion"], row["numbers"], row["target"])
        assert countdown.read_prompt(row["prompt"]) == (row["numbers"], row["target"])
        assert set(row["prompt"] + row["completion"]) <= set(countdown.ALPHABET)
        assert len(row["numbers"]) == numbers
        assert row["target"] <= 99
    assert len({row["prompt"] for row in rows}) == 300
    assert rows[:40] == countdown.instances("train", 40, numbers, seed=1)
    assert rows != countdown.instances("train", 300, numbers, seed=2)


def test_another_order_is_another_instance_to_train_on_alone():
    for split, orders in (("train", True), ("held_out", False)):
        rows = countdown.instances(split, 80, largest=9, largest_target=60)
        keys = {(tuple(sorted(row["numbers"])), row["target"]) for row in rows}
        assert (len(keys) < len(rows)) == orders


@pytest.mark.parametrize("strict", [False, True])
def test_splits_do_not_leak(strict):
    # Few numbers, so that instances would meet if they could.
    keys = {}
    for split in SPLITS:
        rows = countdown.instances(split, 60, largest=9, largest_target=60, strict=strict)
        keys[split] = {(tuple(sorted(r["numbers"])), r["target"] * (not strict)) for r in rows}
    for first, second in itertools.combinations(keys.values(), 2):
        assert not first & second


def test_the_split_does_not_depend_on_the_order_of_the_numbers():
    for numbers in ([3, 7, 25], [4, 9, 11]):
        for strict in (False, True):
            orders = itertools.permutations(numbers)
            assert len({countdown.split_of(order, 46, strict) for order in orders}) == 1


def test_a_tenth_each_is_held_out():
    splits = [countdown.split_of([a, b, 9], 7) for a in range(50) for b in range(50)]
    for split, share in (("train", 0.8), ("validation", 0.1), ("held_out", 0.1)):
        assert splits.count(split) / len(splits) == pytest.approx(share, abs=0.03)


def test_more_instances_than_there_are_is_an_error():
    with pytest.raises(UserError, match="different Countdown instances"):
        countdown.instances("held_out", 500, largest=2)


@pytest.mark.parametrize(
    "sizes", [{"numbers": 2}, {"numbers": 5}, {"largest": 0}, {"largest_target": 0}]
)
def test_sizes_out_of_range(sizes):
    with pytest.raises(UserError, match="3 or 4 numbers"):
        countdown.instances("train", 1, **sizes)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("3*7+25", True),
        (" 25 + 3 * 7 ", True),
        ("((25))+(7*3)", True),
        ("-3*-7+25", True),  # a sign changes no reachable target
        ("3*7+25=46", False),
        ("46", False),  # not the given numbers
        ("25+7*3+0", False),
        ("25+21", False),
        ("25+7+7+7", False),  # 7 is given once
        ("3*7", False),
        ("3+7+25", False),
        ("3/(7-7)+25", False),
    ],
)
def test_the_checker(text, right):
    assert countdown.is_right(text, [3, 7, 25], 46) is right


def test_values_are_exact():
    assert countdown.is_right("8/(3-8/3)", [8, 3, 8, 3], 24)
    assert not countdown.is_right("8/(3-8/3)", [8, 3, 8, 3], 25)


def test_at_most_once_may_leave_numbers_out():
    assert countdown.is_right("3*7", [3, 7, 25], 21, use_all=False)
    assert not countdown.is_right("3*7", [3, 7, 25], 21)
    assert not countdown.is_right("3*3", [3, 7, 25], 9, use_all=False)


HOSTILE = [
    "",
    " ",
    "3.5",  # peers read the numbers 3 and 5
    "9**9**9",
    "9//2",
    "1_0+2",
    "0x10",
    "1e9",
    "3,7",
    "3 7",
    "3(7)",
    "(3)(7)",
    "3\n+7",
    "3\t+7",
    "3+7#",
    "3+7;3",
    "3 if 7 else 1",
    "__import__('os').system('true')",
    "(lambda: 3)()",
    "[3]*7",
    "'3'*7",
    "True+7",
    "3j",
    "３+７",
    "²+7",
    "३+7",
    "3−7",  # a typographic minus
    "007",
    "~3",
    "not 3",
    "3<7",
    "3:=7",
    "f'{3}'",
    "3+" * 3,
    "(" * 99 + "3" + ")" * 98,
    "-" * 150 + "3",
    "9" * 10,
    "9" * 5000,
    "3+" * 5000 + "3",
    "(" * 100000,
    "\x003",
    "\ud800",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
@pytest.mark.filterwarnings("error")
def test_hostile_answers_are_no_expressions(text):
    started = time.monotonic()
    assert countdown.parse(text) is None
    assert not countdown.is_right(text, [3, 7], 10)
    assert countdown.countdown_reward(["3 7 -> 10"], [text]) == [0.0]
    assert time.monotonic() - started < 0.5


def test_values_stay_small_enough_to_compute():
    text = "*".join(["999999999"] * 20)
    tree = countdown.parse(text)
    assert tree is not None
    assert countdown.value_of(tree) == 999999999**20


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("3*7+25", 1.0),
        ("3+7+25", 0.1),
        ("hello", 0.0),
        ("", 0.0),
        ("so <answer> 3*7+25 </answer>", 1.0),
        ("<answer>3+7</answer>", 0.1),
        ("<answer>hello</answer>", 0.1),  # an answer is present: d1's definition
        ("<answer>3+7</answer> <answer>3*7+25</answer>", 1.0),
        ("3*7+25 <answer>1</answer>", 0.1),
        ("<answer>3*7+25", 0.0),
    ],
)
def test_rewards(completion, reward):
    assert countdown.countdown_reward(["3 7 25 -> 46"], [completion]) == [reward]
    assert countdown.countdown_solved(["3 7 25 -> 46"], [completion]) == [float(reward == 1)]


def test_columns_come_before_the_prompt():
    columns = {"numbers": [[3, 7, 25]], "target": [46]}
    assert countdown.countdown_reward(["Make 46."], ["3*7+25"], **columns) == [1.0]


@pytest.mark.parametrize("prompt", ["", "3 7", "3 7 -> x", "-> 3", "3  7 -> 1", "９ 1 -> 3"])
def test_what_is_no_prompt_is_an_error(prompt):
    with pytest.raises(ValueError, match="looks like"):
        countdown.read_prompt(prompt)


def test_targets_may_be_reached_by_sums_and_differences_alone():
    rows = countdown.instances("train", 200, operators="+-")
    for row in rows:
        assert countdown.is_right(row["completion"], row["numbers"], row["target"])
        assert not set(row["completion"]) & set("*/")
    everything = countdown.instances("train", 200)
    assert any(set(row["completion"]) & set("*/") for row in everything)
    # 3 * 7 + 25 = 46 is out of reach; 3 + 7 + 25 = 35 is not.
    assert 46 not in countdown.reachable((3, 7, 25), "+-")
    assert countdown.reachable((3, 7, 25), "+-").keys() >= {35, 29, 21, 15}
