"""Roll-outs: agents that plan, follow their plan, and plan again when they have left it.

Episodes run side by side, so that plans and actions are computed in batches; one episode is the
same code with a batch of one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from lmdiff.denoisers.contract import Condition
from lmdiff.pipelines.goal_pipeline import GoalPipeline, GoalPipelineOutput
from lmdiff.tasks.guarded import Guarded
from lmdiff.tasks.pointmaze import PointMaze

AT_ONCE = 50  # episodes side by side: more make batches that no longer get faster
_OFF_COURSE = 0.5  # plan again when this many hops away from the plan
_ESCAPE = 4  # hops without a goal, when stuck
_WAYS_OUT = 16  # of which the one is followed from whose end the best plan to the goal is found


@cache
def environment(task: PointMaze, slot: int = 0) -> Any:
    """A guarded environment to run episodes in, one for each that runs at the same time."""
    return Guarded(task.make_env(), task.name)


@dataclass
class Episode:
    """One episode to run; what happened is written into it."""

    env: Any
    """A reset gymnasium environment."""
    observation: np.ndarray
    """[observation] where it starts."""
    goal: str | None = None
    """In words."""
    goal_state: np.ndarray | None = None
    """[observation], instead of words."""
    succeeded: Callable[[np.ndarray, dict[str, Any]], bool] | None = None
    """Ends the episode as soon as (observation, info) satisfies it; None: it runs until the agent
    says that it has arrived."""
    max_steps: int = 1000

    success: bool = False
    steps: int = 0
    arrived: bool = False
    """The agent followed a plan to its end."""
    trail: list[np.ndarray] = field(default_factory=list)
    """Observations, the start included."""
    plans: list[tuple[int, np.ndarray]] = field(default_factory=list)
    """(environment step, plan [T, observation]), one for each time that it planned."""
    imagined: np.ndarray | None = None
    """[observation] the state that the goal prior takes the words to mean, if there is one."""
    plan_ms: list[float] = field(default_factory=list)
    """Time of each plan; those of a batch share theirs."""


@dataclass(frozen=True)
class Settings:
    """How to plan and act."""

    num_inference_steps: int = 5
    guidance_scale: float = 1.0
    projection_steps: int = 8
    role: str = "planner"
    """`planner`, or `policy` to act without plans."""


@dataclass
class _Course:
    """A plan that is being followed."""

    waypoints: np.ndarray
    """[T, observation]"""
    arrival: int
    """Index of the step at the goal; T if the plan ends before it."""
    to_goal: bool = True
    """Whether the goal is at its end."""
    passed: int = 0
    """Waypoints reached so far."""

    def ahead(self) -> np.ndarray:
        """[T - 1, observation] what comes next; the last waypoint again and again at the end."""
        last = min(self.arrival, len(self.waypoints) - 1)
        following = self.passed + 1 + np.arange(len(self.waypoints) - 1)
        return self.waypoints[np.minimum(following, last)]

    def ended(self) -> bool:
        return self.passed >= min(self.arrival, len(self.waypoints) - 1)

    def at_goal(self) -> bool:
        """Whether its end is the goal, as far as the model knows."""
        return self.to_goal and self.arrival < len(self.waypoints)

    def left(self, observation: np.ndarray, hop_length: float) -> bool:
        """Whether the agent is not where the plan says."""
        last = min(self.arrival, len(self.waypoints) - 1)
        gap = np.linalg.norm(observation - self.waypoints[min(self.passed, last)])
        return bool(gap > _OFF_COURSE * hop_length)


def run_episodes(
    pipe: GoalPipeline,
    episodes: Sequence[Episode],
    settings: Settings,
    generator: torch.Generator | None = None,
    on_step: Callable[[Episode], None] | None = None,
) -> None:
    """Run episodes to their ends, side by side; results are written into them.

    Goals are not checked for being known: refusing is the caller's choice. All goals are in words
    or all are states.
    """
    in_words = episodes[0].goal is not None
    conditions = pipe.encode_goal(
        [episode.goal or "" for episode in episodes] if in_words else None,
        goal_state=None if in_words else np.stack([e.goal_state for e in episodes]),  # pyright: ignore
        generator=generator,
    )
    hop_length = pipe.config["hop_length"]
    courses: list[_Course | None] = [None] * len(episodes)
    for episode in episodes:
        episode.trail = [episode.observation]
    active = list(range(len(episodes)))
    while active:
        if settings.role == "planner":
            lost = [i for i in active if _needs_plan(courses[i], episodes[i], hop_length)]
            _plan(pipe, episodes, courses, conditions, lost, settings, generator)
            active = [i for i in active if not _arrived(courses[i], episodes[i])]
        if not active:
            break
        observations = np.stack([episodes[i].observation for i in active])
        if settings.role == "planner":
            ahead = np.stack([courses[i].ahead() for i in active])  # pyright: ignore
            chunks = pipe.act(observations, ahead)
        else:
            chunks = pipe.act_towards(observations, conditions.rows(active))
        ended = {
            i
            for i, chunk in zip(active, chunks, strict=True)
            if _execute(episodes[i], chunk, on_step)
        }
        for i in active:
            course = courses[i]
            if course is not None:
                course.passed += 1
        active = [i for i in active if i not in ended]


def _needs_plan(course: _Course | None, episode: Episode, hop_length: float) -> bool:
    if course is None or course.left(episode.observation, hop_length):
        return True
    # An episode that waits for success goes on after a plan's end: perhaps it ended too early.
    at_goal = course.at_goal() and episode.succeeded is None
    return course.ended() and not at_goal


def _arrived(course: _Course | None, episode: Episode) -> bool:
    if episode.succeeded is not None or course is None:
        return False
    episode.arrived = course.ended() and course.at_goal()
    return episode.arrived


def _plan(
    pipe: GoalPipeline,
    episodes: Sequence[Episode],
    courses: list[_Course | None],
    conditions: Condition,
    lost: list[int],
    settings: Settings,
    generator: torch.Generator | None,
) -> None:
    """Give new plans to the episodes `lost`."""
    if not lost:
        return
    began = time.perf_counter()
    hop_length = pipe.config["hop_length"]
    # Whoever got nowhere would plan the same again: it goes where the data goes, then tries anew.
    stuck = torch.tensor([_stuck(episodes[i], hop_length) for i in lost], device=pipe.device)
    plan = pipe(
        conditions.rows(lost).hidden(stuck),
        observation=np.stack([episodes[i].observation for i in lost]),
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        projection_steps=settings.projection_steps,
        generator=generator,
    )
    milliseconds = 1000 * (time.perf_counter() - began)
    for row, i in enumerate(lost):
        course = _Course(plan.observations[row], int(plan.arrival[row]))
        if stuck[row]:
            course = _way_out(pipe, conditions.rows([i]), course.waypoints[0], settings, generator)
        courses[i] = course
        shown = course.waypoints[: course.arrival + 1]
        episodes[i].plans.append((episodes[i].steps, shown))
        episodes[i].plan_ms.append(milliseconds)
        if episodes[i].goal and plan.goal_states is not None and not stuck[row]:
            episodes[i].imagined = plan.goal_states[row]


def _way_out(
    pipe: GoalPipeline,
    condition: Condition,
    observation: np.ndarray,
    settings: Settings,
    generator: torch.Generator | None,
) -> _Course:
    """Some hops without a goal, to where a plan for the goal keeps to what was recorded.

    A tree search of depth two: where a model only knows plans through a wall, it may know better
    ones from around the corner. (Yoon et al., arXiv:2502.07202, search over parts of plans, too.)
    """

    def plan(goal: Condition, start: np.ndarray) -> GoalPipelineOutput:
        return pipe(
            goal,
            observation=start,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            projection_steps=settings.projection_steps,
            generator=generator,
        )

    goals = condition.rows([0] * _WAYS_OUT)
    hidden = torch.ones(_WAYS_OUT, dtype=torch.bool, device=pipe.device)
    ways = plan(goals.hidden(hidden), np.tile(observation, (_WAYS_OUT, 1))).observations
    last = min(_ESCAPE, ways.shape[1] - 1)
    gap = plan(goals, ways[:, last]).gap
    best = 0 if gap is None else int(gap.argmin())
    return _Course(ways[best], last, to_goal=False)


def _stuck(episode: Episode, hop_length: float) -> bool:
    """Whether it is still where it made its last plan."""
    if not episode.plans or episode.plans[-1][0] == episode.steps:
        return False
    gap = np.linalg.norm(episode.observation - episode.trail[episode.plans[-1][0]])
    return bool(gap < _OFF_COURSE * hop_length)


def _execute(
    episode: Episode, chunk: np.ndarray, on_step: Callable[[Episode], None] | None
) -> bool:
    """Do a chunk of actions [stride, action]; returns whether the episode has ended."""
    for action in chunk:
        episode.observation, _, _, _, info = episode.env.step(action)
        episode.trail.append(episode.observation)
        episode.steps += 1
        if on_step is not None:
            on_step(episode)
        if episode.succeeded is not None and episode.succeeded(episode.observation, info):
            episode.success = True
            return True
        if episode.steps >= episode.max_steps:
            return True
    return False
