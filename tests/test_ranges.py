"""Numbers out of range: refused wherever they are written, with the setting's name."""

import copy
import dataclasses
import math
import typing
from typing import Annotated, Any

import pytest

from lmdiff import cli
from lmdiff.config import AgentConfig, agent_from_dict, load_agent, to_dict
from lmdiff.errors import UserError
from lmdiff.policy_config import PolicyAgentConfig
from lmdiff.ranges import Count, Fraction, Positive, Range, Share, check_ranges
from lmdiff.text.config import TextAgentConfig
from lmdiff.text.rl_config import TextRLConfig

AGENTS = {
    "pointmaze-medium": AgentConfig,
    "sudoku-rl": TextAgentConfig,
    "metaworld-mt10": PolicyAgentConfig,
}


def numbers(cls: type, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (annotation, default) of each field of a config that holds numbers."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(cls):
        hint, path = hints[field.name], f"{where}{field.name}"
        if dataclasses.is_dataclass(hint):
            found |= numbers(typing.cast(type, hint), f"{path}.")
        elif {int, float} & leaves(hint):
            found[path] = hint, field.default
    return found


def leaves(hint: Any) -> set[Any]:
    """The plain types that an annotation is made of."""
    if typing.get_origin(hint) is Annotated:
        return leaves(hint.__origin__)
    arguments = [a for a in typing.get_args(hint) if a is not Ellipsis]
    if typing.get_origin(hint) is typing.Literal or not arguments:
        return {hint}
    return set().union(*map(leaves, arguments))


def ranges(hint: Any) -> list[Range]:
    if typing.get_origin(hint) is Annotated:
        return [item for item in hint.__metadata__ if isinstance(item, Range)]
    return [found for part in typing.get_args(hint) for found in ranges(part)]


FIELDS = [(agent, name) for agent, cls in AGENTS.items() for name in numbers(cls)]
# The command line takes a second to read one; the first of each table goes with every run.
TABLES = {(agent, name.partition(".")[0]): name for agent, name in reversed(FIELDS)}
COMMANDS = [
    pytest.param(*field, marks=() if field[1] in TABLES.values() else pytest.mark.slow)
    for field in FIELDS
]


def test_ranges_say_what_is_in_them() -> None:
    share, fraction, positive = Range(0, 1), Range(0, 1, open_above=True), Range(0, open=True)
    assert [value in share for value in (-0.1, 0, 1, 1.1, math.nan)] == [0, 1, 1, 0, 0]
    assert [value in fraction for value in (0, 0.999, 1)] == [1, 1, 0]
    assert [value in positive for value in (0, 1e-9, math.inf)] == [0, 1, 0]
    said = [str(each) for each in (share, fraction, positive)]
    assert said == ["at least 0 and at most 1", "at least 0 and below 1", "above 0"]


def test_all_forms_of_fields_are_checked() -> None:
    @dataclasses.dataclass
    class Inner:
        rate: Positive = 1.0

    @dataclasses.dataclass
    class Outer:
        inner: Inner = dataclasses.field(default_factory=Inner)
        pair: tuple[Count, Share] = (1, 1.0)
        many: tuple[Fraction, ...] = ()
        named: dict[str, Share] = dataclasses.field(default_factory=dict)
        perhaps: Count | None = None

    check_ranges(Outer(many=(0.1, 0.2), named={"a": 0.5}, perhaps=3))
    for outer, message in (
        (Outer(Inner(0.0)), r"inner\.rate = 0\.0: must be above 0 \(--inner\.rate 1\)\."),
        (Outer(pair=(1, 2.0)), r"pair\[1\] = 2\.0"),
        (Outer(many=(0.1, 1.0)), r"many\[1\] = 1\.0: must be at least 0 and below 1"),
        (Outer(named={"a": -1.0}), r"named\.a = -1\.0"),
        (Outer(perhaps=0), r"perhaps = 0: must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            check_ranges(outer)


@pytest.mark.parametrize("cls", [*AGENTS.values(), TextRLConfig])
def test_every_number_of_a_recipe_has_a_range(cls: type) -> None:
    """A new setting, too: say what it may be (lmdiff/ranges.py)."""
    assert [name for name, (hint, _) in numbers(cls).items() if not ranges(hint)] == []


@pytest.mark.parametrize(("agent", "name"), COMMANDS)
def test_an_absurd_number_is_refused_by_the_command_line(
    agent: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainers = (
        "agent.train_agent",
        "text.agent.train_text_agent",
        "policy.agent.train_policy_agent",
    )
    for trainer in trainers:
        monkeypatch.setattr(f"lmdiff.training.{trainer}", lambda *_, **__: pytest.fail(name))
    hint, _ = numbers(AGENTS[agent])[name]
    absurd = "nan" if name == "rl.reward_weights" else "-1"
    option = "--" + {"imitation.roles": "imitation.roles.planner"}.get(name, name)
    values = ["-1", "4"] if name == "task.blanks" else [absurd]
    assert cli.main(["train", agent, option.replace("_", "-"), *values]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lmdiff: ")
    assert name.rpartition(".")[2] in said
    assert f"must be {ranges(hint)[0]}" in said


@pytest.mark.parametrize(("agent", "name"), FIELDS)
def test_an_absurd_number_is_refused_in_a_file(agent: str, name: str) -> None:
    """Not a number, infinite, below and above what is allowed; through a saved recipe as well."""
    hint, default = numbers(AGENTS[agent])[name]
    allowed, kinds = ranges(hint)[0], leaves(hint)
    absurd: list[float] = [-1, allowed.least - 1]
    if allowed.most < math.inf:
        absurd.append(allowed.most + 1)
    if float in kinds:
        absurd = [math.nan, math.inf, *map(float, absurd)]
    values = to_dict(load_agent(agent))
    part, _, key = name.rpartition(".")
    for value in absurd:
        if value in allowed:
            continue
        given: Any = value if int not in kinds else int(value)
        if isinstance(default, tuple):
            given = [given] * len(default)
        elif name == "imitation.roles":
            given = {"planner": given}
        elif name == "rl.reward_weights":
            given = [given]
        changed = copy.deepcopy(values)
        table = changed
        for step in part.split("."):
            table = table[step]
        table[key] = given
        with pytest.raises(UserError, match=key):
            agent_from_dict(changed)


@pytest.mark.parametrize(
    ("agent", "words", "said"),
    [
        ("pointmaze-medium", "--denoiser.heads 3", "denoiser.width = 128 cannot be shared"),
        ("sudoku-sft", "--model.width 30", "model.width = 30 cannot be shared"),
        ("sudoku-sft", "--task.blanks 8 4", "the least comes first"),
        ("pointmaze-medium", "--training.ema-decay 1", "must be at least 0 and below 1"),
        ("pointmaze-medium", "--denoiser.horizon 0", "(--denoiser.horizon 16)"),
        ("metaworld-mt10", "--algorithm.network.heads 5", "algorithm.network.width = 512 cannot"),
        ("metaworld-mt10", "--chunks.execute 9 --chunks.horizon 8", "(--chunks.execute 8)"),
        ("metaworld-mt10", "--chunks.hindsight 0.7 --chunks.random-goals 0.5", "at most 1"),
    ],
)
def test_what_does_not_go_together(
    agent: str, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", agent, *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_some_role_must_be_learnt() -> None:
    values = to_dict(load_agent("pointmaze-medium"))
    with pytest.raises(UserError, match="no role has a share above 0"):
        agent_from_dict(values | {"imitation": {"roles": {"planner": 0.0}}})
