"""The published data procedure of OGBench's point mazes, seeded.

A breadth-first search gives the next cell; the action is the unit direction to its centre plus
Gaussian noise (0.5), clipped. `navigate` episodes wander from goal to goal; `stitch` episodes go to
a goal four cells away and stay, so that long ways exist in no episode. The original does not seed
its noise; here an episode is a pure function of (seed, index), on any number of processes.

Source: OGBench data generation (arXiv:2410.20092, appendix), procedure reimplemented.
"""

from typing import Any

import numpy as np

from lmdiff.tasks.pointmaze import _ACTION_NOISE, _NEIGHBOURS, _STITCH_DISTANCE, Cell, PointMaze


class Expert:
    """Collects episodes in one environment."""

    def __init__(self, task: PointMaze):
        self.task = task
        self.env: Any = task.make_env()
        self.env._terminate_at_goal = False
        self.distances = {cell: task.distances(cell) for cell in task.free_cells}
        self.vertices = [cell for cell in task.free_cells if not self._is_hallway(cell)]

    def _is_hallway(self, cell: Cell) -> bool:
        """Open on two opposite sides only: OGBench draws no goals there."""
        row, column = cell
        walls = self.task.maze_map
        vertical = walls[row - 1, column] == 0 and walls[row + 1, column] == 0
        horizontal = walls[row, column - 1] == 0 and walls[row, column + 1] == 0
        above = walls[row - 1, column] == 1 and walls[row + 1, column] == 1
        beside = walls[row, column - 1] == 1 and walls[row, column + 1] == 1
        return bool((vertical and beside) or (horizontal and above))

    def _next_cell(self, cell: Cell, goal: Cell) -> Cell:
        distance = self.distances[goal]
        best = cell
        for step_row, step_column in _NEIGHBOURS:
            neighbour = (cell[0] + step_row, cell[1] + step_column)
            if neighbour in distance and distance[neighbour] < distance[best]:
                best = neighbour
        return best

    def episode(self, dataset: str, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One episode: observations [T + 1, 2] and actions [T, 2], both float32."""
        rng = np.random.default_rng([seed, index])
        np.random.seed(int(rng.integers(2**32)))  # OGBench draws goal noise from the global one
        start = self.task.free_cells[rng.integers(len(self.task.free_cells))]
        if dataset == "stitch":
            distance = self.distances[start]
            goals = [cell for cell, steps in distance.items() if steps == _STITCH_DISTANCE]
        else:
            goals = self.vertices
        goal = goals[rng.integers(len(goals))] if goals else start
        env, task = self.env, self.task
        env.action_space.seed(int(rng.integers(2**31)))
        task_info = {"init_ij": start, "goal_ij": goal}
        env.reset(seed=int(rng.integers(2**31)), options={"task_info": task_info})

        steps = task.episode_steps(dataset)
        observations = np.empty((steps + 1, 2), np.float32)
        noise = rng.normal(0.0, _ACTION_NOISE, (steps, 2))
        actions = np.empty((steps, 2), np.float32)
        observations[0] = position = env.get_xy()
        centres = {cell: task.to_state(cell) for cell in task.free_cells}
        for step in range(steps):
            goal_cell = env.xy_to_ij(env.cur_goal_xy)
            direction = centres[self._next_cell(env.xy_to_ij(position), goal_cell)] - position
            direction = direction / (np.linalg.norm(direction) + 1e-6)
            action = np.clip(direction + noise[step], -1.0, 1.0)
            position, _, _, _, info = env.step(action)
            observations[step + 1], actions[step] = position, action
            if info["success"] and dataset == "navigate":
                env.set_goal(goal_ij=self.vertices[rng.integers(len(self.vertices))])
        return observations, actions
