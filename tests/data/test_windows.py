"""Windows: what they are of, the goal that they reach, its words, and always the same ones."""

import numpy as np
import pytest
import torch

from lmdiff.config import AgentConfig, DataConfig, DenoiserConfig
from lmdiff.data.episodes import Episodes
from lmdiff.data.hindsight import HindsightPhrases
from lmdiff.data.windows import Batch, WindowSampler
from lmdiff.errors import UserError
from lmdiff.goals.grammar import Phrase, load_grammar
from lmdiff.tasks.pointmaze import PointMaze

MEDIUM = PointMaze("pointmaze-medium")
HORIZON, STRIDE = 8, 8
BOTH = pytest.mark.parametrize("routes", [True, False], ids=["routes", "recordings"])


def _config(routes: bool = True, **data) -> AgentConfig:
    return AgentConfig(
        denoiser=DenoiserConfig(horizon=HORIZON, stride=STRIDE),
        data=DataConfig(**{"routes": routes, "route_goals": 128, "words_fraction": 0.7} | data),
    )


@pytest.fixture(scope="session")
def phrases() -> HindsightPhrases:
    return HindsightPhrases(MEDIUM, load_grammar("maze").phrases(MEDIUM.places, "train", 1500))


@pytest.fixture(scope="session")
def samplers(recorded: Episodes, phrases: HindsightPhrases) -> dict[bool, WindowSampler]:
    return {routes: WindowSampler(_config(routes), recorded, phrases) for routes in (True, False)}


def _equal(first: Batch, second: Batch) -> bool:
    tensors = zip(first[:5], second[:5], strict=True)
    return all(torch.equal(a, b) for a, b in tensors) and first.phrases == second.phrases


def _arrivals(batch: Batch) -> torch.Tensor:
    """[B] the first step without any way to go; HORIZON if there is none."""
    there = batch.signal[..., 0] == 0
    return torch.where(there.any(1), there.int().argmax(1), HORIZON)


@BOTH
def test_a_batch_is_a_function_of_seed_rank_and_step(
    samplers: dict[bool, WindowSampler],
    recorded: Episodes,
    phrases: HindsightPhrases,
    routes: bool,
) -> None:
    sampler = samplers[routes]
    wanted = sampler.batch(1, 2, 3, 64)
    sampler.batch(1, 2, 4, 64)
    np.random.seed(0)
    assert _equal(sampler.batch(1, 2, 3, 64), wanted)
    assert _equal(WindowSampler(_config(routes), recorded, phrases).batch(1, 2, 3, 64), wanted)
    for other in [(0, 2, 3), (1, 0, 3), (1, 2, 0), (2, 1, 3)]:
        batch = sampler.batch(*other, 64)
        same = (batch.observation == wanted.observation).all((1, 2))
        assert same.float().mean() < 0.1


@BOTH
def test_shapes_and_types(samplers: dict[bool, WindowSampler], routes: bool) -> None:
    batch = samplers[routes].batch(0, 0, 0, 5)
    assert batch.observation.shape == (5, HORIZON, 2)
    assert batch.action.shape == (5, HORIZON, 2 * STRIDE)
    assert batch.signal.shape == (5, HORIZON, 1)
    assert batch.goal_state.shape == (5, 2)
    assert len(batch.phrases) == 5
    assert {tensor.dtype for tensor in batch[:4]} == {torch.float32}
    assert batch.window.shape == (5, HORIZON, 3 + 2 * STRIDE)
    assert torch.equal(batch.window[..., -1:], batch.signal)
    assert torch.equal(batch.window[..., :2], batch.observation)


@BOTH
def test_after_the_goal_the_window_rests_there(
    samplers: dict[bool, WindowSampler], routes: bool
) -> None:
    batch = samplers[routes].batch(0, 0, 1, 2000)
    arrivals = _arrivals(batch)
    for row, arrival in enumerate(arrivals.tolist()):
        rest = batch.observation[row, arrival:]
        assert torch.equal(rest, batch.goal_state[row].expand_as(rest))
        assert not batch.action[row, arrival:].any()
        assert not batch.signal[row, arrival:].any()
        # Before, it acts in every hop, and the way gets shorter.
        assert batch.action[row, :arrival].any(1).all()
        assert (batch.signal[row, :arrival] < 0).all()
        assert (batch.signal[row, :arrival].diff(dim=0) > 0).all()
    reached = arrivals < HORIZON
    assert reached.float().mean() > 0.3
    assert torch.equal(batch.observation[reached, -1], batch.goal_state[reached])
    # All distances occur, from being there to more than the window.
    assert set(arrivals.tolist()) >= set(range(HORIZON))
    assert routes == bool((~reached).any())


@BOTH
def test_windows_move_as_the_data_does(samplers: dict[bool, WindowSampler], routes: bool) -> None:
    """Positions follow from the actions, but for walls and the gaps of splices."""
    batch = samplers[routes].batch(0, 0, 2, 1000)
    chunks = batch.action.unflatten(2, (STRIDE, 2))
    assert batch.action.abs().max() <= 1
    foreseen = batch.observation[:, :-1] + 0.2 * chunks[:, :-1].sum(2)
    error = (foreseen - batch.observation[:, 1:]).norm(dim=-1)
    assert error.median() < (0.25 if routes else 1e-4)  # most places touch no wall
    # A wall holds a move back; it never adds to one.
    moved = batch.observation.diff(dim=1).norm(dim=-1)
    limit = 0.2 * chunks[:, :-1].norm(dim=-1).sum(2)
    allowed = torch.full((1, moved.shape[1]), 0.5 if routes else 0.0)
    allowed[0, 0] *= 2  # to a neighbour that sets out, and from the hop's end to the next
    assert (moved <= limit + allowed + 0.05).all()


@BOTH
def test_words_name_places_that_hold_the_goal(
    samplers: dict[bool, WindowSampler], routes: bool
) -> None:
    grammar = load_grammar("maze")
    batch = samplers[routes].batch(0, 0, 3, 600)
    said = [row for row, phrase in enumerate(batch.phrases) if phrase is not None]
    assert 0.62 < len(said) / 600 < 0.78
    told = batch.state_given[said].float().mean()  # half of them get the state besides
    assert 0.4 < told < 0.6
    assert all(batch.state_given[row] for row in range(600) if batch.phrases[row] is None)
    kinds = set()
    for row in said:
        phrase, goal = batch.phrases[row], batch.goal_state[row].numpy()
        assert phrase is not None
        denoted = grammar.denote(phrase, MEDIUM.places)
        assert denoted is not None, phrase
        place, cells = denoted
        kinds.add(place[0])
        assert MEDIUM.cell_of(goal) in cells, phrase
        assert MEDIUM.centred(goal)
        assert grammar.split_of(phrase) == "train"
    assert kinds >= {"cell", "row", "column", "corner", "edge", "half", "quadrant"}


@BOTH
def test_on_a_line_all_is_known_exactly(line: Episodes, routes: bool) -> None:
    """A unit a step, action n / 100 at n: states, actions and progress in closed form."""
    batch = WindowSampler(_config(routes), line, None).batch(0, 0, 0, 3000)
    assert batch.phrases == [None] * 3000
    x, goal = batch.observation[..., 0], batch.goal_state[:, :1]
    torch.testing.assert_close(batch.signal[..., 0], x - goal)
    done = batch.action.unflatten(2, (STRIDE, 2))
    step = torch.arange(STRIDE)
    here = x[..., None] + step
    before = here < goal[..., None]
    torch.testing.assert_close(done[..., 1], torch.where(before, here / 100, 0.0))
    torch.testing.assert_close(done[..., 0], before.float())
    advanced = done[..., 0].sum(2)[:, :-1]
    torch.testing.assert_close(x.diff(dim=1), advanced)
    # Goals lie anywhere within the last hop: each of its steps is a goal now and then.
    last = advanced[advanced > 0].unique().tolist()
    assert last == list(range(1, STRIDE + 1))


def test_spoken_goals_are_whole_hops_away(samplers: dict[bool, WindowSampler]) -> None:
    """They are recorded states, which the phrase clearly describes; none lies within a hop."""
    sampler = samplers[False]
    batch = sampler.batch(0, 0, 5, 500)
    stride = torch.tensor(float(STRIDE))
    for row, phrase in enumerate(batch.phrases):
        if phrase is not None:
            assert not (batch.signal[row] % stride).any()
    spoken = torch.tensor([phrase is not None for phrase in batch.phrases])
    assert (batch.signal[~spoken] % stride).any()


def test_without_words_every_goal_is_a_state(recorded: Episodes, phrases: HindsightPhrases) -> None:
    silent = WindowSampler(_config(words_fraction=0.0), recorded, phrases)
    assert silent.batch(0, 0, 0, 50).phrases == [None] * 50
    spoken = WindowSampler(_config(words_fraction=1.0), recorded, phrases)
    assert None not in spoken.batch(0, 0, 0, 50).phrases


def test_places_are_said_evenly_over_kinds(phrases: HindsightPhrases) -> None:
    """Four corners are not drowned by thirty cells."""
    rng = np.random.default_rng(0)
    drawn = [phrases.draw_place(rng)[0] for _ in range(4000)]
    cells, corners = drawn.count("cell"), drawn.count("corner")
    assert 0.25 < corners / cells < 0.6
    assert all(set(texts) for texts in phrases.texts.values())


def test_hindsight_describes_only_the_clear(phrases: HindsightPhrases) -> None:
    states = MEDIUM.to_state(np.array([[1, 1], [1.45, 1], [6, 5], [6.2, 5.2], [1, 1.1]]))
    found = phrases.index(states)
    assert found["corner", "top", "left"].tolist() == [0, 4]
    assert found["dead_end",].tolist() == [2, 3]
    assert found["half", "top"].tolist() == [0, 4]
    assert found["corner", "top", "right"].tolist() == []


def test_data_too_short_for_a_hop_is_a_users_mistake(line: Episodes) -> None:
    config = AgentConfig(denoiser=DenoiserConfig(stride=100))
    with pytest.raises(UserError, match=r"denoiser\.stride"):
        WindowSampler(config, line, None)


@pytest.mark.timeout(30)
@BOTH
def test_words_of_which_the_data_shows_none_are_a_users_mistake(
    line: Episodes, routes: bool
) -> None:
    """It must not look for ever."""
    elsewhere = Phrase("there", ("cell", 6, 5), frozenset({(6, 5)}), "train", "template")
    with pytest.raises(UserError, match=r"phrase"):
        WindowSampler(_config(routes), line, HindsightPhrases(MEDIUM, [elsewhere]))
