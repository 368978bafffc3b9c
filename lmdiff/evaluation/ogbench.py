"""OGBench's own protocol: five start and goal pairs a maze, goals given as states.

Start and goal carry the benchmark's noise, an episode succeeds when the agent comes within 1.0 of
the goal, after at most 1000 steps, and nothing but the model's own actions moves it. The published
tables are means over 50 episodes a task (arXiv:2410.20092, section 6).
"""

import numpy as np
import torch

from lmdiff.evaluation.intervals import Interval, wilson
from lmdiff.evaluation.rollout import AT_ONCE, Episode, Settings, environment, run_episodes
from lmdiff.evaluation.sharing import noise_seed, over_ranks
from lmdiff.pipelines.goal_pipeline import GoalPipeline
from lmdiff.tasks.pointmaze import PointMaze


def evaluate_ogbench(
    pipe: GoalPipeline, task: PointMaze, settings: Settings, episodes_per_task: int, seed: int
) -> tuple[Interval, list[Interval]]:
    """Success over all episodes, which are shared among ranks, and for each of the five tasks."""
    starts = [(task_id, index) for task_id in range(1, 6) for index in range(episodes_per_task)]

    def run(mine: list[int]) -> list[list[float]]:
        generator = torch.Generator(pipe.device).manual_seed(noise_seed(seed))
        results: list[list[float]] = []
        for first in range(0, len(mine), AT_ONCE):
            group = [
                _start(task, *starts[which], seed, slot)
                for slot, which in enumerate(mine[first : first + AT_ONCE])
            ]
            run_episodes(pipe, group, settings, generator)
            results += [[float(episode.success)] for episode in group]
        return results

    results = over_ranks(len(starts), run)
    by_task = results.astype(bool).reshape(5, episodes_per_task)
    each = [wilson(int(row.sum()), len(row)) for row in by_task]
    return wilson(int(by_task.sum()), by_task.size), each


def _start(task: PointMaze, task_id: int, index: int, seed: int, slot: int) -> Episode:
    env = environment(task, slot)
    np.random.seed([seed, task_id, index])  # OGBench draws its noise from the global generator
    observation, info = env.reset(seed=seed + index, options={"task_id": task_id})
    return Episode(
        env=env,
        observation=observation,
        goal_state=info["goal"],
        succeeded=lambda _, info: bool(info["success"]),
        max_steps=task.max_episode_steps,
    )
