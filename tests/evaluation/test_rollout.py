"""Roll-outs with a planner that knows the map: following, replanning, arriving, ending."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stub_planner import HORIZON, SPACING, STRIDE, StubPlanner

from lmdiff.denoisers.contract import Condition
from lmdiff.evaluation.language import start_episode
from lmdiff.evaluation.ogbench import evaluate_ogbench
from lmdiff.evaluation.rollout import Episode, Settings, _way_out, run_episodes
from lmdiff.tasks.pointmaze import PointMaze

MEDIUM = PointMaze("pointmaze-medium")
CORNER = "go to the bottom right corner"
SETTINGS = Settings()


def _episode(start=(1, 1), goal: str = CORNER, slot: int = 0) -> Episode:
    return start_episode(MEDIUM, start, goal, [0, slot], slot)


def _run(*episodes: Episode, pipe: StubPlanner | None = None, **options) -> StubPlanner:
    pipe = pipe or StubPlanner(MEDIUM)
    settings = options.pop("settings", SETTINGS)
    run_episodes(pipe, episodes, settings, **options)  # type: ignore[arg-type]
    return pipe


def test_it_follows_plans_to_the_goal_and_stops_there() -> None:
    episode = _episode()
    _run(episode)
    assert episode.arrived
    assert np.linalg.norm(episode.observation - MEDIUM.to_state((6, 6))) < 0.1
    # The way is ten cells of four units; a plan sees eleven strides of 0.8. No detours.
    assert MEDIUM.distances((6, 6))[1, 1] == 10
    assert 40 / 0.2 - 20 < episode.steps < 40 / 0.2 + 40
    assert 5 <= len(episode.plans) <= 7
    assert len(episode.plan_ms) == len(episode.plans)
    assert all(time > 0 for time in episode.plan_ms)
    assert len(episode.trail) == episode.steps + 1
    assert episode.steps % STRIDE == 0
    for step, plan in episode.plans:
        np.testing.assert_allclose(plan[0], episode.trail[step])
    cells = [MEDIUM.cell_of(position) for position in episode.trail]
    assert set(cells) <= set(MEDIUM.free_cells)


def test_plans_are_shown_up_to_their_arrival() -> None:
    episode = _episode(start=(6, 5))
    _run(episode)
    ((step, plan),) = episode.plans
    assert step == 0
    assert len(plan) < HORIZON
    np.testing.assert_allclose(plan[-1], MEDIUM.to_state((6, 6)))


def test_it_plans_again_when_pushed_off_course() -> None:
    calm, pushed = _episode(slot=0), _episode(slot=1)
    pushed.env.unwrapped.set_xy(calm.observation)
    pushed.observation = calm.observation
    times = []

    def push(episode: Episode) -> None:
        if episode.steps == 2 * STRIDE:  # at the end of a chunk, back by half a cell
            episode.env.unwrapped.set_xy(episode.observation - np.array([2.0, 0.0]))
            episode.observation = episode.env.unwrapped.get_xy()
            times.append(episode.steps)

    _run(calm)
    _run(pushed, on_step=push)
    assert times == [2 * STRIDE]
    assert [step for step, _ in calm.plans][1] == (HORIZON - 1) * STRIDE
    assert [step for step, _ in pushed.plans][:2] == [0, 2 * STRIDE]
    assert pushed.arrived
    assert np.linalg.norm(pushed.observation - MEDIUM.to_state((6, 6))) < 0.1


def test_a_nudge_is_no_reason_to_plan_again() -> None:
    episode = _episode()

    def nudge(episode: Episode) -> None:
        if episode.steps == 2 * STRIDE:
            episode.env.unwrapped.set_xy(episode.observation + np.array([0.0, 0.3 * SPACING]))
            episode.observation = episode.env.unwrapped.get_xy()

    _run(episode, on_step=nudge)
    assert episode.plans[1][0] == (HORIZON - 1) * STRIDE
    assert episode.arrived


@pytest.mark.parametrize("limit", [1, 10, 48])
def test_time_is_up_at_max_steps(limit: int) -> None:
    episode = _episode()
    episode.max_steps = limit
    _run(episode)
    assert episode.steps == limit
    assert len(episode.trail) == limit + 1
    assert not episode.arrived
    assert not episode.success


def test_with_a_test_of_success_it_ends_as_soon_as_that_holds() -> None:
    near = MEDIUM.to_state((6, 6))
    episode = _episode()
    episode.succeeded = lambda position, _: bool(np.linalg.norm(position - near) < 1.0)
    _run(episode)
    assert episode.success
    distance = np.linalg.norm(np.stack(episode.trail) - near, axis=1)
    assert distance[-1] < 1.0 <= distance[-2]


def test_a_plan_that_claims_to_arrive_early_is_believed_only_without_a_test() -> None:
    near = MEDIUM.to_state((6, 6))
    fooled = _episode(slot=0)
    _run(fooled, pipe=StubPlanner(MEDIUM, claims_early=3))
    assert fooled.arrived
    assert fooled.steps == 3 * STRIDE
    tested = _episode(slot=1)
    tested.succeeded = lambda position, _: bool(np.linalg.norm(position - near) < 1.0)
    _run(tested, pipe=StubPlanner(MEDIUM, claims_early=8))
    assert tested.success
    assert len(tested.plans) > 6


def test_side_by_side_is_as_alone() -> None:
    goals = [CORNER, "go to row 1, column 1", "go to row 6, column 5", "go to row 5, column 3"]
    starts = [(1, 1), (1, 2), (2, 6), (1, 1)]

    def episodes() -> list[Episode]:
        return [
            _episode(start, goal, slot)
            for slot, (start, goal) in enumerate(zip(starts, goals, strict=True))
        ]

    together, alone = episodes(), []
    pipe = _run(*together)
    for index in range(4):
        alone.append(episodes()[index])
        _run(alone[-1])
    assert len({episode.steps for episode in together}) == 4
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(np.stack(a.trail), np.stack(b.trail))
        assert [step for step, _ in a.plans] == [step for step, _ in b.plans]
        assert a.arrived
    # One call plans for all that need it, and for no others.
    assert pipe.calls[0] == 4
    assert sum(pipe.calls) == sum(len(episode.plans) for episode in together)


def test_the_policy_acts_without_plans() -> None:
    episode = _episode(start=(1, 1), goal="go to row 1, column 2")
    episode.max_steps = 40
    pipe = _run(episode, settings=Settings(role="policy"))
    assert episode.plans == []
    assert pipe.calls == []
    assert episode.steps == 40
    assert np.linalg.norm(episode.observation - MEDIUM.to_state((1, 2))) < 0.1


def test_goals_may_be_states() -> None:
    goal = MEDIUM.to_state((4, 6)) + np.array([0.5, -0.7])
    start = _episode()
    episode = Episode(start.env, start.observation, goal_state=goal)
    _run(episode)
    assert episode.arrived
    assert np.linalg.norm(episode.observation - goal) < 0.1


@pytest.mark.parametrize("name", ["pointmaze-medium", "pointmaze-giant"])
def test_the_stock_protocol_is_passed_by_a_planner_that_knows_the_map(name: str) -> None:
    task = PointMaze(name)
    total, each = evaluate_ogbench(StubPlanner(task), task, SETTINGS, 2, seed=0)  # type: ignore
    assert total.mean == 1.0
    assert [interval.mean for interval in each] == [1.0] * 5
    # One that stands still reaches nothing; each of the tasks counts.
    lazy = StubPlanner(task)
    lazy.act = lambda observations, _: np.zeros((len(observations), 250, 2))
    total, each = evaluate_ogbench(lazy, task, SETTINGS, 1, seed=0)  # type: ignore
    assert total.mean == 0.0
    assert len(each) == 5


def test_the_way_out_is_the_one_from_whose_end_the_plan_keeps_to_the_data() -> None:
    class Fan:
        """Way i leads along x = i; plans keep to the data from x = 20 only."""

        device = torch.device("cpu")

        def __call__(self, goal: Condition, *, observation: np.ndarray, **_) -> SimpleNamespace:
            if goal.state_given is None or goal.state_given.any():
                return SimpleNamespace(gap=np.abs(observation[:, 0] - 20.0))
            speed = np.arange(len(observation), dtype=float)[:, None, None]
            return SimpleNamespace(observations=speed * np.arange(6)[:, None] * np.array([1.0, 0]))

    goal = Condition(state=torch.zeros(1, 2))
    course = _way_out(Fan(), goal, np.zeros(2), Settings(), None)  # pyright: ignore[reportArgumentType]
    assert course.waypoints[course.arrival].tolist() == [20.0, 0.0]
    assert not course.at_goal()
