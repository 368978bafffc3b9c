import pytest

from lmdiff.errors import UserError
from lmdiff.goals.sayings import Sayings

DATA = {
    "goals": {
        "open the door": {
            "train": ["open the door", "pull the door open"],
            "held_out": ["get the door out of the way"],
        },
        "pick up the {color} {kind}": {
            "train": ["pick up the {color} {kind}"],
            "held_out": ["lift the {color} {kind}"],
        },
    },
    "words": {"color": {"grey": {"train": ["grey", "gray"], "held_out": ["ashen"]}}},
}
SAYINGS = Sayings(DATA, "")


def test_taught_sentences_fill_slots_with_taught_words():
    assert SAYINGS.of("open the door", "train") == ["open the door", "pull the door open"]
    assert SAYINGS.of("pick up the grey ball", "train") == [
        "pick up the grey ball",
        "pick up the gray ball",
    ]


def test_held_out_sentences_have_one_untaught_part():
    assert set(SAYINGS.of("pick up the grey ball", "held_out")) == {
        "lift the grey ball",
        "lift the gray ball",
        "pick up the ashen ball",
    }
    # A word of which nothing is said is said as it is, and is taught.
    assert SAYINGS.of("pick up the red key", "held_out") == ["lift the red key"]


def test_phrases_take_goals_in_turn_and_repeat_by_seed():
    goals = ["open the door", "pick up the grey ball"]
    first = SAYINGS.phrases(goals, "train", limit=2)
    assert [saying.goal for saying in first] == goals
    assert len(SAYINGS.phrases(goals, "train")) == 4
    assert SAYINGS.phrases(goals, "train", seed=3) == SAYINGS.phrases(goals, "train", seed=3)


def test_meaning_knows_every_split_and_nothing_else():
    goals = ["pick up the red ball", "pick up the grey ball", "open the door"]
    assert SAYINGS.meaning("Lift the ashen ball", goals) is None
    assert SAYINGS.meaning("Pick up the ASHEN ball!", goals) == "pick up the grey ball"
    assert SAYINGS.meaning("get the door out of the way", goals) == "open the door"
    assert SAYINGS.meaning("make me a coffee", goals) is None


def test_a_goal_without_a_sentence_is_named():
    with pytest.raises(UserError, match="fly to the moon"):
        SAYINGS.of("fly to the moon", "train")


def test_values_of_several_words_and_two_slots_of_one_table():
    sayings = Sayings(
        {
            "goals": {
                "take the {color} {kind}": {"train": ["take the {color} {kind}"]},
                "take the {kind} {where}": {"train": ["take the {kind} {where}"]},
                "put the {kind} by the {kind2}": {"train": ["{kind} to {kind2}"]},
            },
            "words": {
                "color": {"red": {}},
                "kind": {"ball": {"train": ["ball", "globe"]}, "box": {}},
                "where": {"on your left": {"train": ["at left"]}, "behind you": {}},
            },
        },
        "",
    )
    assert sayings.of("take the red box", "train") == ["take the red box"]
    assert sayings.of("take the box on your left", "train") == ["take the box at left"]
    assert sayings.of("take the box behind you", "train") == ["take the box behind you"]
    assert sayings.of("put the ball by the box", "train") == ["ball to box", "globe to box"]
    # What no table lists is said as it is.
    assert sayings.of("take the pink cup", "train") == ["take the pink cup"]
