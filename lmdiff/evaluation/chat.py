"""`lmdiff chat`: goal after goal in one episode; a new goal interrupts the old one."""

import queue
import sys
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from lmdiff.errors import GoalNotUnderstood
from lmdiff.evaluation.agents import load_pipeline, settings_of, task_of
from lmdiff.evaluation.commands import meaning_of
from lmdiff.evaluation.language import start_episode
from lmdiff.evaluation.pictures import write_video
from lmdiff.evaluation.rollout import Episode, run_episodes
from lmdiff.saved_agents import find_agent

if TYPE_CHECKING:
    from lmdiff.verbs import Chat

_LIMIT = 1000  # environment steps for one goal
_FAREWELLS = {"quit", "exit", "bye"}


class _Interrupted(Exception):  # noqa: N818 (not an error)
    """A new goal was said."""


def chat(command: "Chat") -> int:
    """Read goals from standard input until its end; returns the exit code.

    On a terminal the agent moves at `speed` and obeys a new goal at once. Piped goals are carried
    out one after the other, as fast as can be.
    """
    folder = find_agent(command.agent)
    pipe = load_pipeline(folder)
    task, settings = task_of(pipe), settings_of(pipe)
    generator = torch.Generator(pipe.device).manual_seed(command.seed)
    rng = np.random.default_rng(command.seed)
    start = task.free_cells[rng.integers(len(task.free_cells))]
    state = start_episode(task, start, "", [command.seed, 0])
    live = sys.stdin.isatty()
    goals: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_listen, args=(goals,), daemon=True).start()
    trail = [state.observation]
    plans: list[tuple[int, np.ndarray]] = []
    print(f"I am in row {start[0]}, column {start[1]}. Say a goal; `quit` ends.", flush=True)

    def on_step(episode: Episode) -> None:
        if live:
            time.sleep(1 / command.speed)
            if not goals.empty():
                raise _Interrupted

    while (goal := goals.get()) is not None and goal.lower() not in _FAREWELLS:
        try:
            pipe.understand(goal)
            meaning = meaning_of(goal, pipe, task, {})
        except GoalNotUnderstood as error:
            print(error, flush=True)
            continue
        episode = Episode(state.env, state.observation, goal=goal, max_steps=_LIMIT)
        try:
            run_episodes(pipe, [episode], settings, generator, on_step)
        except _Interrupted:
            print("(interrupted)", flush=True)
        else:
            row, column = task.cell_of(episode.observation)
            there = (row, column) in meaning.cells
            said = "I am there" if there else "I did not get there; I am"
            print(f"{said}: row {row}, column {column}, {episode.steps} steps.", flush=True)
        plans += [(len(trail) - 1 + step, plan) for step, plan in episode.plans]
        trail += episode.trail[1:]
        state.observation = episode.observation
    if len(trail) > 1:
        path = (command.output or folder.parent / "rollouts") / f"chat-{command.seed}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = [(step, task.to_cells(plan)) for step, plan in plans]
        cells = task.to_cells(np.stack(trail))
        print(
            f"video: {write_video(path, task.maze_map, cells, shown, [], 'chat', max_frames=240)}"
        )
    return 0


def _listen(goals: "queue.Queue[str | None]") -> None:
    for line in sys.stdin:
        if line.strip():
            goals.put(line.strip())
    goals.put(None)
