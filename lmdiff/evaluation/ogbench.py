"""OGBench's own protocol: five start and goal pairs a maze, goals given as states.

Start and goal carry the benchmark's noise, an episode succeeds when the agent comes within 1.0 of
the goal, after at most 1000 steps, and nothing but the model's own actions moves it. The published
tables are means over 50 episodes a task (arXiv:2410.20092, section 6).
"""

from collections.abc import Iterator

import numpy as np
import torch

from lmdiff.evaluation.intervals import Interval, wilson
from lmdiff.evaluation.rollout import Episode, Settings, run_episodes
from lmdiff.pipelines.goal_pipeline import GoalPipeline
from lmdiff.tasks.pointmaze import PointMaze

_AT_ONCE = 50  # episodes side by side


def evaluate_ogbench(
    pipe: GoalPipeline, task: PointMaze, settings: Settings, episodes_per_task: int, seed: int
) -> tuple[Interval, list[Interval], list[Episode]]:
    """Success over all episodes, for each of the five tasks, and the episodes."""
    episodes = list(_episodes(task, episodes_per_task, seed))
    generator = torch.Generator(pipe.device).manual_seed(seed)
    for start in range(0, len(episodes), _AT_ONCE):
        run_episodes(pipe, episodes[start : start + _AT_ONCE], settings, generator)
    results = np.array([episode.success for episode in episodes]).reshape(-1, episodes_per_task)
    each = [wilson(int(row.sum()), len(row)) for row in results]
    return wilson(int(results.sum()), results.size), each, episodes


def _episodes(task: PointMaze, episodes_per_task: int, seed: int) -> Iterator[Episode]:
    for task_id in range(1, 6):
        for index in range(episodes_per_task):
            env = task.make_env()
            np.random.seed([seed, task_id, index])  # OGBench draws its noise from the global one
            observation, info = env.reset(seed=seed + index, options={"task_id": task_id})
            yield Episode(
                env=env,
                observation=observation,
                goal_state=info["goal"],
                succeeded=lambda _, info: bool(info["success"]),
                max_steps=task.max_episode_steps,
            )
