"""Success by words: what counts, what is refused, and phrases of one's own."""

from pathlib import Path

import numpy as np
import pytest
from stub_planner import StubPlanner

from lmdiff.errors import UserError
from lmdiff.evaluation import language
from lmdiff.evaluation.language import (
    Outcome,
    Trial,
    draw_trials,
    language_report,
    read_phrases,
    run_trials,
    start_episode,
)
from lmdiff.evaluation.refusal_report import refusal_report
from lmdiff.evaluation.rollout import Settings
from lmdiff.goals.grammar import Phrase, load_grammar
from lmdiff.tasks.pointmaze import PointMaze

MEDIUM = PointMaze("pointmaze-medium")
SETTINGS = Settings()


def _run(trials: list[Trial], **options) -> list[Outcome]:
    return run_trials(StubPlanner(MEDIUM), MEDIUM, trials, SETTINGS, 0, **options)  # type: ignore


def test_success_is_to_stand_inside_in_the_end() -> None:
    goal = "go to row 6, column 6"
    outcomes = _run(
        [
            Trial((1, 1), goal, frozenset({(6, 6)})),
            Trial((1, 1), goal, frozenset({(5, 6), (4, 6), (2, 2)})),  # passed through
            Trial((1, 1), goal, frozenset({(1, 1)})),  # where it started
            Trial((1, 1), goal, frozenset({(1, 1), (6, 6)})),
        ]
    )
    assert [outcome.success for outcome in outcomes] == [True, False, False, True]
    assert all(outcome.understood and outcome.steps > 150 for outcome in outcomes)


def test_refused_goals_fail_without_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(*arguments, **options):
        started.append(arguments[2])
        return start_episode(*arguments, **options)

    monkeypatch.setattr(language, "start_episode", start)
    everywhere = frozenset(MEDIUM.free_cells)
    trials = [
        Trial((1, 1), "make me a coffee", everywhere),
        Trial((1, 1), "go to row 1, column 2", frozenset({(1, 2)})),
        Trial((1, 1), "", everywhere),
    ]
    outcomes = _run(trials)
    assert outcomes[0] == outcomes[2] == Outcome(success=False, understood=False, steps=0)
    assert outcomes[1].success
    assert started == ["go to row 1, column 2"]
    # Without refusing, they are run: here, by standing still.
    assert [outcome.success for outcome in _run(trials, refuse=False)] == [True] * 3


def test_outcomes_keep_their_order_in_any_number_of_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = [(1, 2), (6, 6), (1, 1), (2, 1), (6, 1), (5, 3), (3, 3)]
    trials = [
        Trial((2, 2), f"go to row {r}, column {c}" if i != 2 else "?", frozenset({(r, c)}))
        for i, (r, c) in enumerate(cells)
    ]
    whole = _run(trials)
    assert [outcome.success for outcome in whole] == [i != 2 for i in range(7)]
    monkeypatch.setattr(language, "AT_ONCE", 3)
    pieces = _run(trials)
    assert [o.steps for o in pieces] == [o.steps for o in whole]


def test_an_episode_starts_in_its_cell_always_alike() -> None:
    first = start_episode(MEDIUM, (5, 3), "x", [1, 2])
    where = first.observation.copy()
    np.random.seed(0)
    assert np.array_equal(start_episode(MEDIUM, (5, 3), "x", [1, 2]).observation, where)
    other = start_episode(MEDIUM, (5, 3), "x", [1, 3]).observation
    assert not np.array_equal(other, where)
    assert MEDIUM.cell_of(where) == MEDIUM.cell_of(other) == (5, 3)


def test_starts_are_outside_of_the_goal_and_phrases_take_turns() -> None:
    phrases = load_grammar("maze").phrases(MEDIUM.places, "train", limit=30)
    trials = draw_trials(MEDIUM, phrases, 75, seed=0)
    assert [trial.goal for trial in trials] == [phrases[i % 30].text for i in range(75)]
    assert all(trial.start not in trial.cells for trial in trials)
    assert all(trial.start in MEDIUM.free_cells for trial in trials)
    assert draw_trials(MEDIUM, phrases, 75, seed=0) == trials
    assert draw_trials(MEDIUM, phrases, 75, seed=1) != trials
    everywhere = Phrase("x", ("x",), frozenset(MEDIUM.free_cells), "train", "template")
    with pytest.raises(UserError, match="whole maze"):
        draw_trials(MEDIUM, [everywhere], 1, seed=0)


def test_shuffled_goals_are_of_another_episode_and_apart_from_its_own() -> None:
    phrases = load_grammar("maze").phrases(MEDIUM.places, "train", limit=60)
    trials = draw_trials(MEDIUM, phrases, 60, seed=0)
    shuffled = language._shuffle(trials, seed=0)
    for own, told in zip(trials, shuffled, strict=True):
        assert told.start == own.start
        assert not told.cells & own.cells
        assert told.start not in told.cells
        assert (told.goal, told.cells) in {(trial.goal, trial.cells) for trial in trials}
    assert len({told.goal for told in shuffled}) > 20
    with pytest.raises(UserError, match="shuffled"):
        language._shuffle(trials[:1], seed=0)


def test_the_report_tells_a_listener_from_a_deaf_agent() -> None:
    grammar = load_grammar("maze")
    taught = grammar.phrases(MEDIUM.places, "train", limit=12)
    held_out = grammar.phrases(MEDIUM.places, "held_out", limit=12)
    pipe = StubPlanner(MEDIUM)

    def report() -> dict:
        return language_report(pipe, MEDIUM, SETTINGS, taught, held_out, 12, 0)  # type: ignore

    found = report()
    kinds = {"true", "held_out", "shuffled", "empty", "contradictory"}
    understood = {f"{kind}_understood" for kind in kinds - {"shuffled"}}
    assert set(found) == kinds | understood | {"held_out_by_reason"}
    for name in kinds | understood:
        assert set(found[name]) == {"mean", "low", "high"}
    means = {name: found[name]["mean"] for name in kinds}
    assert means == {
        "true": 1.0,
        "held_out": 1.0,
        "shuffled": 1.0,
        "empty": 0.0,
        "contradictory": 0.0,
    }
    assert found["empty_understood"]["mean"] == 0.0
    reasons = found["held_out_by_reason"]
    assert sum(entry["episodes"] for entry in reasons.values()) == 12
    # One that always goes to the same corner, whatever is said.
    pipe._place = lambda _: MEDIUM.to_state((6, 6))
    deaf = report()
    hit = sum((6, 6) in phrase.cells for phrase in taught) / 12
    assert deaf["true"]["mean"] == deaf["empty"]["mean"] == pytest.approx(hit)
    assert hit < 0.7


def test_phrases_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "phrases.tsv"
    path.write_text(
        "# a comment\n\nthe hideout\t6,5\n  up there \t1,1; 1,2;1,2;\r\nà gauche\t 4,1\n",
        encoding="utf-8",
    )
    phrases = read_phrases(path, MEDIUM)
    assert [(phrase.text, set(phrase.cells)) for phrase in phrases] == [
        ("the hideout", {(6, 5)}),
        ("up there", {(1, 1), (1, 2)}),
        ("à gauche", {(4, 1)}),
    ]


def test_editors_that_mark_utf8_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "phrases.tsv"
    path.write_text("the hideout\t6,5\n", encoding="utf-8-sig")
    assert read_phrases(path, MEDIUM)[0].text == "the hideout"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("the hideout 6,5", "tab"),
        ("\t6,5", "phrase"),
        ("the hideout\t0,0", "wall"),
        ("the hideout\t6,5;3,1", "row 3, column 1 is a wall"),
        ("the hideout\t8,8", "outside"),
        ("the hideout\t-2,-2", "outside"),
        ("the hideout\tsix,five", "'six,five' is not a cell"),
        ("the hideout\t6", "'6' is not a cell"),
        ("the hideout\t6,5,4", "'6,5,4' is not a cell"),
        ("the hideout\t", "is not a cell"),
        ("the hideout\t6,5;;6,6", "'' is not a cell"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "phrases.tsv"
    path.write_text(f"fine\t1,1\n# comment\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_phrases(path, MEDIUM)
    assert f"{path}, line 3: " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n# nothing\n", b"\xff\xfe\x00\x01binary\x80", None])
def test_a_file_without_phrases_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "phrases.tsv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        read_phrases(path, MEDIUM)
    with pytest.raises(UserError, match=str(tmp_path)):
        read_phrases(tmp_path, MEDIUM)


class _KnownGoals:
    """Scores by a grammar, and at random if it is to be bad."""

    threshold = 0.5

    def __init__(self, blind: bool):
        self.blind = blind

    def scores(self, texts: list[str]) -> list[float]:
        if self.blind:
            return np.random.default_rng(0).random(len(texts)).tolist()
        grammar = load_grammar("maze")
        return [float(grammar.split_of(text) is not None) for text in texts]


def test_the_refusal_report_tells_good_from_blind() -> None:
    good = refusal_report(_KnownGoals(blind=False), MEDIUM, seed=0)  # type: ignore[arg-type]
    assert good["auroc"]["mean"] > 0.97
    assert good["known_accepted"] == 1.0
    assert good["unknown"] >= 40
    assert good["known"] == 300
    blind = refusal_report(_KnownGoals(blind=True), MEDIUM, seed=0)  # type: ignore[arg-type]
    assert blind["auroc"]["low"] < 0.5 < blind["auroc"]["high"]
    assert blind["known_accepted"] + blind["unknown_refused"] == pytest.approx(1, abs=0.2)
