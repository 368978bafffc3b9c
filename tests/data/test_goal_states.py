"""States for phrases: each lies where its phrase says, and a batch is always the same one."""

import numpy as np
import pytest
import torch

from lmdiff.data.episodes import Episodes
from lmdiff.data.goal_states import GoalStateSampler
from lmdiff.data.hindsight import HindsightPhrases
from lmdiff.errors import UserError
from lmdiff.goals.grammar import load_grammar
from lmdiff.tasks.pointmaze import PointMaze

MEDIUM = PointMaze("pointmaze-medium")


@pytest.fixture(scope="module")
def sampler(recorded: Episodes) -> GoalStateSampler:
    phrases = load_grammar("maze").phrases(MEDIUM.places, "train", 1500)
    return GoalStateSampler(
        np.concatenate(recorded.observations), HindsightPhrases(MEDIUM, phrases)
    )


def test_states_lie_where_their_phrase_says(sampler: GoalStateSampler) -> None:
    grammar = load_grammar("maze")
    batch = sampler.batch(0, 0, 0, 200, 6)
    assert batch.states.shape == (200, 6, 2)
    several = 0
    for text, states in zip(batch.phrases, batch.states.numpy(), strict=True):
        denoted = grammar.denote(text, MEDIUM.places)
        assert denoted is not None
        cells = {MEDIUM.cell_of(state) for state in states}
        assert cells <= denoted[1], text
        assert MEDIUM.centred(states).all()
        assert grammar.split_of(text) == "train"
        several += len(cells) > 1
    assert several > 50  # wide phrases are shown at several places


def test_a_batch_is_a_function_of_seed_rank_and_step(sampler: GoalStateSampler) -> None:
    first = sampler.batch(1, 2, 3, 32, 4)
    sampler.batch(1, 2, 4, 32, 4)
    again = sampler.batch(1, 2, 3, 32, 4)
    assert first.phrases == again.phrases
    assert torch.equal(first.states, again.states)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(sampler.batch(*other, 32, 4).states, first.states)


def test_known_states_are_described_ones(sampler: GoalStateSampler) -> None:
    known = sampler.known(500, 0).numpy()
    assert known.shape == (500, 2)
    assert MEDIUM.centred(known).all()
    assert {MEDIUM.cell_of(state) for state in known} <= set(MEDIUM.free_cells)
    assert len({MEDIUM.cell_of(state) for state in known}) == len(MEDIUM.free_cells)
    assert len(np.unique(known, axis=0)) == 500
    more = sampler.known(100_000, 0).numpy()  # more than there are: some come again
    assert len(more) == 100_000


def test_words_without_data_are_refused() -> None:
    phrases = load_grammar("maze").phrases(MEDIUM.places, "train", 50)
    with pytest.raises(UserError, match=r"No phrase describes any state.*task\.steps"):
        GoalStateSampler(np.full((3, 2), 2.0, np.float32), HindsightPhrases(MEDIUM, phrases))
