"""Any text at all as a goal or a prompt: it is answered or refused, and never a traceback.

A few here; `scripts/fuzz` tries ten thousand.
"""

from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.goals.encoder import GoalEncoder
from lmdiff.goals.grammar import load_grammar
from lmdiff.goals.refusal import MAX_CHARACTERS, KnownGoals
from lmdiff.tasks.pointmaze import PointMaze
from lmdiff.text.tokenizer import char_tokenizer, encode_prompt

# Words of goals among any Unicode (surrogates and unassigned code points too), 0 to 1 MB long.
WORDS = st.sampled_from(
    [
        "go to",
        "row",
        "3",
        "-1",
        "column",
        "the top",
        "corner",
        "left",
        ",",
        "\n",
        "٣",
        "ﬁ",
        "﷽",
        "x",
    ]
)
SENTENCES = st.lists(WORDS | st.text(max_size=12), max_size=12).map(" ".join)
LONG = st.builds(
    lambda piece, count: piece * count, st.text(min_size=1, max_size=20), st.integers(1, 50_000)
)
TEXTS = st.text(alphabet=st.characters(exclude_categories=()), max_size=300) | SENTENCES | LONG

QUIET = settings(
    deadline=None,
    database=None,
    derandomize=True,  # a failure today is a failure tomorrow
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def encoder():
    return GoalEncoder("embedded")


@pytest.fixture(scope="module")
def known(encoder):
    return make_known(encoder)


def make_known(encoder):
    taught = ["go to the top left corner", "row 3, column 4", "the lower half"]
    strays = ["bake a cake", "sing me a song", "what is the time"]
    return KnownGoals.fit(encoder, taught, strays, taught, strays)


@pytest.fixture(scope="module")
def maze():
    return PointMaze("pointmaze-medium")


def refusal(ask, text):
    """What `ask(text)` is refused with, if it is."""
    try:
        ask(text)
    except UserError as error:
        return error
    return None


@cache
def grammar_of(maze):
    return load_grammar(maze.grammar)


def answer(known, maze, text):
    """What `lmdiff run` asks of a goal, without the planner; the refusal, if it is refused."""
    refused = refusal(known.check, text)
    if refused is None:
        assert 0 < len(text.strip()) <= MAX_CHARACTERS
    else:
        assert isinstance(refused, GoalNotUnderstood)
        assert 1 <= len(refused.nearest) <= 3
        assert len(str(refused)) < 2000
    denoted = grammar_of(maze).denote(text, maze.places)
    assert denoted is None or denoted[1] <= set(maze.free_cells)
    return refused


def prompt(text):
    """Its tokens, as a text agent's prompt; the refusal, if it is refused."""
    tokenizer, tokens = char_tokenizer("0123"), []
    # Once only: a megabyte takes a second.
    refused = refusal(lambda text: tokens.extend(encode_prompt(tokenizer, text)), text)
    if refused is None:
        assert min(tokens) >= 0
        assert max(tokens) < len(tokenizer)
    else:
        assert 0 < len(str(refused)) < 500
    return refused


@settings(QUIET, max_examples=100)
@given(text=TEXTS)
def test_any_goal_is_answered_or_refused(known, maze, text):
    answer(known, maze, text)


@settings(QUIET, max_examples=100)
@given(text=TEXTS)
def test_any_prompt_is_encoded_or_refused(text):
    prompt(text)


@settings(QUIET, max_examples=30)
@given(text=TEXTS)
def test_any_goal_without_a_check_is_encoded_or_refused(encoder, text):
    """`pipe.encode_goal`: no KnownGoals stand before it."""
    refused = refusal(lambda text: encoder([text]), text)
    if refused is None:
        assert encoder([text]).states.isfinite().all()
    else:
        assert isinstance(refused, GoalNotUnderstood)
