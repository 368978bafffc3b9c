import importlib.util
import time

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.goals import embedded
from lmdiff.goals.encoder import GoalEncoder
from lmdiff.goals.grammar import load_grammar, load_unknown
from lmdiff.goals.refusal import _CONTRAST, _COSINE, KnownGoals, _best_threshold, auroc


class Pipe(DiffusionPipeline):
    def __init__(self, goal_encoder: GoalEncoder, known_goals: KnownGoals):
        super().__init__()
        self.register_modules(goal_encoder=goal_encoder, known_goals=known_goals)
        known_goals.attach(goal_encoder)


@pytest.fixture(scope="module")
def encoder():
    if importlib.util.find_spec(embedded.PACKAGE) is None:
        pytest.skip("lmdiff[embedded] is not installed")
    return GoalEncoder()


@pytest.fixture(scope="module")
def known_goals(encoder, places):
    grammar = load_grammar()
    taught = grammar.phrases(places, "train", limit=1000)
    return KnownGoals.fit(
        encoder,
        [phrase.text for phrase in taught],
        load_unknown("train"),
        [phrase.text for phrase in grammar.phrases(places, "validation", limit=300)],
        load_unknown("validation"),
        labels=[str(phrase.place) for phrase in taught],
    )


def test_auroc_in_closed_form():
    assert auroc([2, 3], [0, 1]) == 1.0
    assert auroc([0, 1], [2, 3]) == 0.0
    assert auroc([1, 1], [1, 1]) == 0.5
    assert auroc([1, 3], [0, 2]) == 0.75


def test_the_threshold_is_the_middle_of_the_gap():
    assert _best_threshold(np.array([4.0, 5.0]), np.array([0.0, 2.0])) == 3.0
    # one stray: accepting 2 of 2 and refusing 2 of 3
    assert 1.0 < _best_threshold(np.array([4.0, 5.0]), np.array([0.0, 1.0, 9.0])) < 4.0


def test_scores_weigh_the_nearest_of_either_kind():
    goals = KnownGoals(["taught"], ["taught"], width=2, strangers=1)
    goals.features.copy_(torch.tensor([[1.0, 0.0]]))
    goals.strange.copy_(torch.tensor([[0.0, 1.0]]))
    like_taught, like_stray = goals._scores(torch.eye(2)).tolist()
    assert like_taught == _COSINE + _CONTRAST
    assert like_stray == -_CONTRAST


def test_an_agent_that_kept_no_strays_scores_as_it_did(tmp_path):
    goals = KnownGoals(["taught"], ["taught"], width=2)
    goals.features.copy_(torch.tensor([[1.0, 0.0]]))
    goals.save_pretrained(tmp_path)
    again = KnownGoals.from_pretrained(tmp_path)
    assert "strange" not in again.state_dict()
    assert again._scores(torch.eye(2)).tolist() == [_COSINE, 0.0]


def test_auroc_on_the_held_out_split(known_goals, places):
    held_out = load_grammar().phrases(places, "held_out", limit=300)
    known = known_goals.scores([phrase.text for phrase in held_out])
    assert auroc(known, known_goals.scores(load_unknown("held_out"))) >= 0.98


@pytest.mark.parametrize(
    "goal",
    [
        "head to the upper left corner",
        "southeast corner",
        "walk to row 3 column 5",
        "go somewhere in the bottom half",
        "the dead end in the north-east",
        "take me to the lower right",
        "  lower left\n",
    ],
)
def test_known_goals_pass(known_goals, goal):
    known_goals.check(goal)


@pytest.mark.parametrize(
    "goal", ["make me a coffee", "bonjour", "mach mir bitte einen Kaffee", "pick up the red ball"]
)
def test_unknown_goals_are_refused_with_the_nearest(known_goals, goal):
    with pytest.raises(GoalNotUnderstood, match="not taught") as error:
        known_goals.check(goal)
    assert len(error.value.nearest) == 3
    assert error.value.nearest[0] in str(error.value)
    assert error.value.exit_code == 3


def test_nearest_names_different_places(known_goals):
    label = dict(zip(known_goals.config["phrases"], known_goals.config["labels"], strict=True))
    nearest = known_goals.nearest("go to row 3", k=4)
    assert "row" in nearest[0].lower()
    assert len({label[phrase] for phrase in nearest}) == 4


@pytest.mark.parametrize(
    "goal",
    [
        "",
        "  \n",
        "go " * 40_000,
        "x" * 501,
        "go to\x00 the top",
        "\x07\x1b[2J",
        "\u200b",
        "?!",
        "🙂",
    ],
)
def test_the_unreadable_never_reaches_the_language_model(known_goals, goal, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(known_goals._encoder[0], "base", never)
    start = time.perf_counter()
    with pytest.raises(GoalNotUnderstood) as error:
        known_goals.check(goal)
    assert time.perf_counter() - start < 0.1
    assert len(error.value.nearest) == 3
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


def test_more_tokens_than_the_encoder_reads(known_goals):
    with pytest.raises(GoalNotUnderstood, match="too long") as error:
        known_goals.check("a b c d e f g h " * 10)
    assert len(error.value.nearest) == 3


def test_as_a_component_of_a_pipeline(encoder, known_goals, tmp_path):
    goals = ["go home", "the top left corner"]
    before = known_goals.scores(goals)
    Pipe(encoder, known_goals).save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    again = Pipe.from_pretrained(tmp_path)
    assert again.known_goals.scores(goals) == pytest.approx(before, abs=1e-5)
    assert float(again.known_goals.threshold) == float(known_goals.threshold)
    assert again.known_goals.nearest("go home") == known_goals.nearest("go home")


def test_an_encoder_is_needed_and_must_fit(known_goals, tiny, tmp_path):
    known_goals.save_pretrained(tmp_path)
    again = KnownGoals.from_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="attach"):
        again.score("the top")
    with pytest.raises(UserError, match="width"):
        again.attach(GoalEncoder(tiny["bert"]))


def test_a_share_of_strays_can_be_refused(encoder):
    known, strays = ["open the door", "close the door"], ["hello", "what time is it?", "sing"]
    validation = ["who are you?", "make me a coffee", "tell me a joke", "buy some milk"]
    fit = [encoder, known, strays, ["shut the door"], validation]
    for share in (0.5, 1.0):
        goals = KnownGoals.fit(*fit, refused=share)
        below = sum(score < float(goals.threshold) for score in goals.scores(validation))
        assert below in (round(share * 4), round(share * 4) - 1)
