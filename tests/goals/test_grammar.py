import time
from collections import Counter

import pytest

from lmdiff.errors import UserError
from lmdiff.goals.grammar import SPLITS, load_grammar, load_unknown, normalise


@pytest.fixture(scope="module")
def grammar():
    return load_grammar("maze")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("head to the upper left corner", ("corner", "top", "left")),
        ("southeast corner", ("corner", "bottom", "right")),
        ("walk to row 3 column 4", ("cell", 3, 4)),
        ("column 4, row 3", ("cell", 3, 4)),
        ("r3c4", ("cell", 3, 4)),
        ("ROW THREE, COLUMN FOUR!", ("cell", 3, 4)),
        ("go somewhere in the bottom half", ("half", "bottom")),
        ("the dead end in the south-east", ("dead_end", "bottom", "right")),
        ("move to the centre of the maze", ("centre",)),
        ("take me to the lower right", ("corner", "bottom", "right")),
        ("go to the lower right quadrant", ("quadrant", "bottom", "right")),
        ("anywhere in row 4", ("row", 4)),
        ("along the left wall", ("edge", "left")),
        # words around the description that no carrier has
        ("robot, roll to the upper right hand corner right now", ("corner", "top", "right")),
        ("my dear, the north-western corner would be lovely", ("corner", "top", "left")),
    ],
)
def test_what_phrases_denote(grammar, places, text, place):
    assert grammar.denote(text, places) == (place, places[place])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "make me a coffee",
        "turn left",
        "je ne sais pas",
        "the top left corner or the bottom right corner",
        "not the top left corner",
        "what is in the top left corner?",
        "row 3 column 4 row 5",
        "the middle right",
        "the top left corner " * 100,
    ],
)
def test_what_denotes_nothing(grammar, places, text):
    assert grammar.denote(text, places) is None


def test_walls_and_places_that_this_maze_lacks(grammar, places):
    assert grammar.denote("go to row 1, column 3", places) == (("cell", 1, 3), frozenset())
    # ... and not column 3, though "column 3" occurs in it.
    assert grammar.denote("go to row 12, column 3", places) == (("cell", 12, 3), frozenset())
    missing = ("dead_end", "top", "right")
    assert missing not in places
    assert grammar.denote("the dead end in the north-east", places) == (missing, frozenset())


def test_the_orientation_of_words(grammar, places):
    for text, cells in {
        "the top left corner": {(1, 1)},
        "the top right corner": {(1, 6)},
        "the bottom left corner": {(6, 1)},
        "row 1": {(1, 1), (1, 2), (1, 5), (1, 6)},
        "column 3": {(3, 3), (5, 3), (6, 3)},
    }.items():
        assert grammar.denote(text, places)[1] == cells


@pytest.mark.parametrize("split", SPLITS)
def test_phrases_denote_what_they_claim(grammar, places, split):
    phrases = grammar.phrases(places, split, limit=1500)
    assert len({normalise(phrase.text) for phrase in phrases}) == len(phrases) == 1500
    for phrase in phrases:
        assert phrase.split == split == grammar.split_of(phrase.text)
        assert phrase.cells
        assert grammar.denote(phrase.text, places) == (phrase.place, phrase.cells)


def test_splits_are_disjoint_and_nothing_held_out_is_taught(grammar, places):
    texts = {s: grammar.phrases(places, s, limit=4000) for s in SPLITS}
    plain = {s: {normalise(phrase.text) for phrase in texts[s]} for s in SPLITS}
    assert not plain["train"] & (plain["validation"] | plain["held_out"])
    assert not plain["validation"] & plain["held_out"]
    taught = {word for text in plain["train"] for word in text.split()}
    assert not taught & {"uppermost", "lowermost", "far", "labyrinth", "proceed", "cul", "escort"}
    said = {word for text in plain["held_out"] for word in text.split()}
    assert {"uppermost", "lowermost", "far", "labyrinth", "proceed", "cul", "escort"} <= said
    assert {phrase.kind for phrase in texts["train"]} == {"taught"}
    for split in ("validation", "held_out"):
        counts = Counter(phrase.kind for phrase in texts[split])
        assert set(counts) == {"template", "synonym", "combination"}
        assert min(counts.values()) > 100


def test_a_tenth_of_the_combinations_is_held_out(grammar, places):
    cells = [key for key in places if key[0] == "cell"]
    template = "go to row {}, column {}"
    held = [grammar.split_of(template.format(*key[1:])) for key in cells]
    assert 0.03 < held.count("held_out") / len(held) < 0.2
    assert held.count("train") / len(held) > 0.65
    # The same combination with other punctuation or a carrier stays where it is.
    for key, split in zip(cells, held, strict=True):
        _, r, c = key
        assert grammar.split_of(f"Row {r} column {c}!") == split


def test_limits_are_shared_evenly_and_seeds_decide(grammar, places):
    phrases = grammar.phrases(places, "train", limit=1100, seed=3)
    kinds = Counter((phrase.place[0], len(phrase.place)) for phrase in phrases)
    assert len(kinds) == 10
    assert kinds.pop(("cell", 3)) == 200
    assert set(kinds.values()) == {100}
    per_cell = Counter(phrase.place for phrase in phrases if phrase.place[0] == "cell")
    assert max(per_cell.values()) - min(per_cell.values()) <= 1
    assert phrases == grammar.phrases(places, "train", limit=1100, seed=3)
    assert phrases != grammar.phrases(places, "train", limit=1100, seed=4)
    # A cell without a place has no phrase: walls are not said.
    assert all(places[phrase.place] for phrase in phrases)


def test_the_training_split_is_generous(grammar, places):
    assert len(grammar.phrases(places, "train")) > 2000
    assert len(grammar.phrases(places, "train", limit=20_000)) == 20_000


def test_denoting_is_fast(grammar, places):
    start = time.perf_counter()
    for _ in range(20):
        grammar.denote("go " * 160, places)
    grammar.denote("x" * 10_000_000, places)
    assert time.perf_counter() - start < 2


def test_unknown_sentences(grammar, places):
    unknown = {split: load_unknown(split) for split in SPLITS}
    least = {"train": 150, "validation": 40, "held_out": 60}
    assert all(len(unknown[split]) >= least[split] for split in SPLITS)
    plain = {split: {normalise(text) for text in unknown[split]} for split in SPLITS}
    assert not plain["held_out"] & (plain["train"] | plain["validation"])
    assert not plain["train"] & plain["validation"] - {""}
    for texts in unknown.values():
        assert all(grammar.split_of(text) is None for text in texts)


def test_digest_and_mistakes(grammar, tmp_path):
    assert len(grammar.digest) == 64
    assert load_grammar("maze").digest == grammar.digest
    with pytest.raises(UserError, match="Did you mean 'maze'"):
        load_grammar("maz")
    bad = tmp_path / "bad.toml"
    bad.write_text("[carriers]\ntrain = []\n")
    with pytest.raises(UserError, match="not a phrase grammar"):
        load_grammar(bad)
    bad.write_text("carriers = [")
    with pytest.raises(UserError, match="not valid TOML"):
        load_grammar(bad)
    bad.write_text("")
    with pytest.raises(UserError, match="held_out"):
        load_unknown("held_out", bad)
