"""The verbs `run` and `eval`: what they compute, print and leave behind."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.evaluation.agents import load_pipeline, settings_of, task_of
from lmdiff.evaluation.intervals import wilson
from lmdiff.evaluation.language import (
    Trial,
    draw_trials,
    language_report,
    read_phrases,
    run_trials,
    start_episode,
)
from lmdiff.evaluation.ogbench import evaluate_ogbench
from lmdiff.evaluation.pictures import draw_plan, write_video
from lmdiff.evaluation.printing import print_rate, print_result
from lmdiff.evaluation.refusal_report import refusal_report
from lmdiff.evaluation.rollout import Episode, run_episodes
from lmdiff.evaluation.sharing import rank_and_size
from lmdiff.evaluation.summary import add_row
from lmdiff.goals.grammar import load_grammar
from lmdiff.pipelines.goal_pipeline import GoalPipeline
from lmdiff.saved_agents import find_agent
from lmdiff.tasks.pointmaze import Cell, PointMaze

if TYPE_CHECKING:
    from lmdiff.verbs import Eval, Run

_ACHIEVED, _NOT_ACHIEVED = 0, 4


@dataclass(frozen=True)
class Meaning:
    """What a goal denotes, and who says so."""

    cells: frozenset[Cell]
    judge: str
    """`file`, `grammar`, or `nearest: PHRASE` where the words are free."""


def meaning_of(
    goal: str, pipe: GoalPipeline, task: PointMaze, phrases: dict[str, frozenset[Cell]]
) -> Meaning:
    """The cells that count as success for a goal that was understood.

    Raises:
        GoalNotUnderstood: the goal is a wall, or is not in this maze.
    """
    if goal in phrases:
        return Meaning(phrases[goal], "file")
    grammar = load_grammar(task.grammar)
    denoted = grammar.denote(goal, task.places)
    if denoted is None and pipe.known_goals is not None:
        nearest = pipe.known_goals.nearest(goal, 1)[0]
        found = grammar.denote(nearest, task.places)
        if found is not None:
            return Meaning(found[1], f"nearest: {nearest}")
    if denoted is None:
        raise GoalNotUnderstood(f"It is not clear which place {goal!r} denotes.")
    place, cells = denoted
    if not cells:
        nearest = pipe.known_goals.nearest(goal) if pipe.known_goals is not None else []
        what = " ".join(map(str, place)).replace("_", " ")
        raise GoalNotUnderstood(
            f"{task.name} has no such place to stand ({what} is a wall, or is not there). "
            f"The nearest goals that I know: {'; '.join(nearest)}.",
            nearest,
        )
    return Meaning(cells, "grammar")


def run_goal(command: "Run") -> int:
    """`lmdiff run DIR GOAL`."""
    folder = find_agent(command.agent)
    pipe = load_pipeline(folder)
    task = task_of(pipe)
    goal = (command.goal or "").strip()
    taught = (
        {p.text: p.cells for p in read_phrases(command.phrases, task)} if command.phrases else {}
    )
    result: dict[str, Any] = {
        "goal": command.goal,
        "understood": False,
        "nearest": [],
        "success": False,
        "steps": 0,
        "plan_ms": None,
        "picture": None,
        "video": None,
    }
    try:
        pipe.understand(goal)
        meaning = meaning_of(goal, pipe, task, taught)
    except GoalNotUnderstood as error:
        print(error)
        result["nearest"] = error.nearest
        print_result(result, as_json=command.json)
        return error.exit_code
    episode = _run_one(command, pipe, task, goal, meaning)
    output = command.output or folder.parent / "rollouts"
    stem = output / f"{re.sub(r'[^a-z0-9]+', '-', goal.lower()).strip('-')[:60]}-{command.seed}"
    achieved = task.cell_of(episode.observation) in meaning.cells
    imagined = None if episode.imagined is None else task.cell_of(episode.imagined)
    picture, video = _show(task, episode, goal, meaning, stem, achieved, video=command.video)
    result |= {
        "understood": True,
        "nearest": pipe.known_goals.nearest(goal) if pipe.known_goals is not None else [],
        "success": achieved,
        "steps": episode.steps,
        "plan_ms": round(float(np.median(episode.plan_ms)), 1),
        "picture": str(picture),
        "video": str(video) if video else None,
        "arrived": episode.arrived,
        "plans": len(episode.plans),
        "start": list(task.cell_of(episode.trail[0])),
        "end": list(task.cell_of(episode.observation)),
        "imagined": None if imagined is None else list(imagined),
        "cells": sorted(map(list, meaning.cells)),
        "judged_by": meaning.judge,
    }
    there = task.cell_of(episode.observation)
    print(f"{'Achieved' if achieved else 'Not achieved'}: {goal}")
    print(
        f"  in row {there[0]}, column {there[1]} after {episode.steps} steps, "
        f"{len(episode.plans)} plan(s)"
    )
    if imagined is not None:
        print(f"  understood as row {imagined[0]}, column {imagined[1]}")
    if meaning.judge.startswith("nearest"):
        print(f"  judged as its {meaning.judge}")
    print(f"  picture: {picture}")
    if video:
        print(f"  video:   {video}")
    print_result(result, as_json=command.json)
    return _ACHIEVED if achieved else _NOT_ACHIEVED


def _run_one(
    command: "Run", pipe: GoalPipeline, task: PointMaze, goal: str, meaning: Meaning
) -> Episode:
    rng = np.random.default_rng(command.seed)
    outside = [cell for cell in task.free_cells if cell not in meaning.cells] or task.free_cells
    start = outside[rng.integers(len(outside))]
    if command.start is not None:
        start = _read_start(command.start, task)
    episode = start_episode(task, start, goal, [command.seed, 0])
    settings = settings_of(pipe, command.num_inference_steps, command.guidance_scale)
    run_episodes(pipe, [episode], settings, torch.Generator(pipe.device).manual_seed(command.seed))
    return episode


def _read_start(text: str, task: PointMaze) -> Cell:
    try:
        row, column = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--start {text!r}: write row,column as in 3,5.") from None
    if (row, column) not in task.free_cells:
        raise UserError(f"--start {text}: that cell is a wall, or outside of {task.name}.")
    return row, column


def _show(
    task: PointMaze,
    episode: Episode,
    goal: str,
    meaning: Meaning,
    stem: Path,
    achieved: bool,
    *,
    video: bool,
) -> tuple[Path, Path | None]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    trail = task.to_cells(np.stack(episode.trail))
    plans = [(step, task.to_cells(plan)) for step, plan in episode.plans]
    subtitle = f"{'achieved' if achieved else 'not achieved'} after {episode.steps} steps"
    first = plans[0][1] if plans else None
    picture = draw_plan(
        stem.with_suffix(".png"), task.maze_map, first, trail, meaning.cells, goal, subtitle
    )
    if not video:
        return picture, None
    shown = write_video(stem.with_suffix(".gif"), task.maze_map, trail, plans, meaning.cells, goal)
    return picture, shown


def run_phrases(command: "Run") -> int:
    """`lmdiff run DIR --phrases FILE`: each phrase once."""
    assert command.phrases is not None
    pipe = load_pipeline(find_agent(command.agent))
    task = task_of(pipe)
    phrases = read_phrases(command.phrases, task)
    trials = draw_trials(task, phrases, len(phrases), command.seed)
    if command.start is not None:
        start = _read_start(command.start, task)
        trials = [Trial(start, trial.goal, trial.cells) for trial in trials]
    settings = settings_of(pipe, command.num_inference_steps, command.guidance_scale)
    outcomes = run_trials(pipe, task, trials, settings, command.seed)
    rows = []
    for trial, outcome in zip(trials, outcomes, strict=True):
        said = (
            "achieved" if outcome.success else "not achieved" if outcome.understood else "refused"
        )
        print(f"{said:14} {outcome.steps:4} steps  {trial.goal}")
        rows.append(
            {
                "goal": trial.goal,
                "understood": outcome.understood,
                "success": outcome.success,
                "steps": outcome.steps,
            }
        )
    rate = wilson(sum(o.success for o in outcomes), len(outcomes))
    print(f"success {rate}")
    print_result(
        {"results": rows, "success": rate.to_dict(), "seed": command.seed}, as_json=command.json
    )
    return _ACHIEVED if all(o.success for o in outcomes) else _NOT_ACHIEVED


def evaluate(command: "Eval") -> int:
    """`lmdiff eval DIR`."""
    folder = find_agent(command.agent)
    pipe = load_pipeline(folder)
    task, own = task_of(pipe), pipe.config["evaluation"] or {}
    episodes = command.episodes or own.get("episodes", 100)
    seed = own.get("seed", 1000) if command.seed is None else command.seed
    settings = settings_of(
        pipe,
        command.num_inference_steps,
        command.guidance_scale,
        command.role,
        command.projection_steps,
    )
    report: dict[str, Any] = {
        "agent": pipe.config["agent"],
        "task": task.name,
        "episodes": episodes,
        "seeds": [seed],
        "role": settings.role,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "projection_steps": settings.projection_steps,
    }
    if command.phrases is not None:
        phrases = read_phrases(command.phrases, task)
        trials = draw_trials(task, phrases, max(len(phrases), episodes), seed)
        outcomes = run_trials(pipe, task, trials, settings, seed)
        report["phrases"] = {
            "file": str(command.phrases),
            "episodes": len(trials),
            "success": wilson(sum(o.success for o in outcomes), len(trials)).to_dict(),
            "understood": wilson(sum(o.understood for o in outcomes), len(trials)).to_dict(),
        }
        print_rate("phrases of the file", report["phrases"]["success"])
    if pipe.known_goals is not None:
        grammar = load_grammar(task.grammar)
        taught = grammar.phrases(task.places, "train", limit=episodes, seed=seed)
        held_out = grammar.phrases(task.places, "held_out", limit=episodes, seed=seed)
        language = language_report(pipe, task, settings, taught, held_out, episodes, seed)
        report |= {"success": language["true"], "language": language}
        report["refusal"] = refusal_report(pipe.known_goals, task, seed)
        for name in ("true", "held_out", "shuffled", "empty", "contradictory"):
            print_rate(f"{name} goals", language[name])  # pyright: ignore[reportArgumentType]
        print(f"{'refusal, AUROC':24} {report['refusal']['auroc']['mean']:.3f}")
    if command.ogbench_episodes > 0:
        total, each = evaluate_ogbench(pipe, task, settings, command.ogbench_episodes, seed)
        report["ogbench"] = {
            "episodes_per_task": command.ogbench_episodes,
            "success": total.to_dict(),
            "tasks": [interval.to_dict() for interval in each],
        }
        report.setdefault("success", report["ogbench"]["success"])
        print_rate("OGBench, goal as state", report["ogbench"]["success"])
    if rank_and_size()[0] == 0:
        (folder.parent / "eval.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        if command.output is not None:
            add_row(command.output, report, folder.parent)
    print_result(report, as_json=command.json)
    return _ACHIEVED
