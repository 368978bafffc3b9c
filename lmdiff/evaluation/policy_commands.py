"""The verbs `run` and `eval` for policies: what they compute, print and leave behind."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.evaluation.agents import load_policy
from lmdiff.evaluation.few_steps import few_steps, numbers_of_steps, plot_few_steps
from lmdiff.evaluation.films import write_film
from lmdiff.evaluation.policy_language import policy_report, world_of
from lmdiff.evaluation.policy_rollout import PolicyEpisode, Sampling, run_policy
from lmdiff.evaluation.printing import print_rate, print_result
from lmdiff.evaluation.refusal_report import policy_refusal_report
from lmdiff.evaluation.sharing import rank_and_size
from lmdiff.evaluation.summary import add_few_steps, add_policy_row
from lmdiff.goals.sayings import Sayings, load_sayings
from lmdiff.pipelines.policy_pipeline import PolicyPipeline
from lmdiff.saved_agents import find_agent
from lmdiff.tasks.world import World

if TYPE_CHECKING:
    from lmdiff.verbs import Eval, Run

_ACHIEVED, _NOT_ACHIEVED = 0, 4


def run_policy_goal(command: "Run") -> int:
    """`lmdiff run DIR GOAL` for a policy."""
    folder = find_agent(command.agent)
    pipe = load_policy(folder)
    world = world_of(pipe.config["world"])
    words = (command.goal or "").strip()
    pipe.understand(words)
    goal, judge = _meaning(pipe, world, load_sayings(world.family), words)
    seed = _start(world, goal, command.seed)
    episode = PolicyEpisode(world, seed, goal, words)
    sampling = _sampling(pipe, command.num_inference_steps, command.guidance_scale)
    generator = torch.Generator(pipe.device).manual_seed(command.seed)
    frames: list[np.ndarray] = []

    def film(_: PolicyEpisode) -> None:
        frames.append(world.guard.call(world.render))

    run_policy(pipe, [episode], sampling, generator, film if command.video else None)
    video = None
    if command.video:
        name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:60] or "goal"
        target = (command.output or folder.parent / "rollouts") / f"{name}-{command.seed}.gif"
        video = write_film(target, frames, words, world.metadata["render_fps"])
    print(f"{'Achieved' if episode.success else 'Not achieved'}: {words}")
    print(f"  {episode.steps} steps in {world.name}, seed {command.seed}")
    if judge != "prompts":
        print(f"  judged as {goal!r}, its {judge}")
    if video:
        print(f"  video:   {video}")
    result = {
        "goal": command.goal,
        "understood": True,
        "key": goal,
        "judged_by": judge,
        "success": episode.success,
        "steps": episode.steps,
        "action_ms": round(float(np.median(episode.milliseconds)), 2),
        "video": str(video) if video else None,
    }
    print_result(result, as_json=command.json)
    return _ACHIEVED if episode.success else _NOT_ACHIEVED


def _meaning(pipe: PolicyPipeline, world: World, sayings: Sayings, words: str) -> tuple[str, str]:
    """The goal that counts as success, and who says so."""
    goal = sayings.meaning(words, world.goals)
    if goal is not None:
        return goal, "prompts"
    if pipe.known_goals is None:
        return world.goals[0], "only goal"
    nearest = pipe.known_goals.nearest(words, 1)[0]
    goal = sayings.meaning(nearest, world.goals)
    if goal is None:
        raise GoalNotUnderstood(f"It is not clear what {words!r} asks for.")
    return goal, f"nearest known sentence: {nearest!r}"


def _start(world: World, goal: str, seed: int) -> int:
    """Seed of a start in which the goal makes sense: `seed` itself, or the next that does."""
    if not world.swappable:
        return seed
    for start in range(seed, seed + 500):
        world.reset(seed=start)
        if goal in world.guard.call(world.possible):
            return start
    raise UserError(f"No start was found in which {goal!r} makes sense; try another --seed.")


def evaluate_policy(command: "Eval") -> int:
    """`lmdiff eval DIR` for a policy."""
    folder = find_agent(command.agent)
    pipe = load_policy(folder)
    world, own = world_of(pipe.config["world"]), pipe.config["evaluation"] or {}
    sayings = load_sayings(world.family)
    episodes = command.episodes or own.get("episodes", 100)
    seed = own.get("seed", 1000) if command.seed is None else command.seed
    sampling = _sampling(pipe, command.num_inference_steps, command.guidance_scale)
    trained = _trained(folder.parent)
    report: dict[str, Any] = {
        "agent": pipe.config["agent"],
        "world": world.name,
        "algorithm": trained.get("algorithm", {}).get("name", ""),
        "training_seed": trained.get("training", {}).get("seed", 0),
        "episodes": episodes,
        "seeds": [seed],
        "num_inference_steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
    }
    language = policy_report(pipe, world, sayings, sampling, episodes, seed)
    report |= {"success": language["true"], "language": language}
    for name in ("true", "held_out", "other_words", "empty", "contradictory"):
        if name in language:
            print_rate(f"{name} goals", language[name])
    for name, rate in language.get("swap", {}).items():
        print_rate(f"swap, {name}", rate)
    if pipe.known_goals is not None:
        report["refusal"] = policy_refusal_report(pipe.known_goals, world, sayings, seed)
        print(f"{'refusal, AUROC':24} {report['refusal']['auroc']['mean']:.3f}")
    if command.steps:
        settings = [(n, _sampling(pipe, n, None)) for n in numbers_of_steps(command.steps)]
        report["few_steps"] = few_steps(pipe, world, sayings, settings, episodes, seed)
    if rank_and_size()[0] == 0:
        (folder.parent / "eval.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        if command.output is not None:
            add_policy_row(command.output, report, folder.parent)
            add_few_steps(command.output, report)
        if command.steps:
            plot = plot_few_steps(folder.parent / "few-steps.png", report["few_steps"], world.name)
            print(f"plot: {plot}")
    print_result(report, as_json=command.json)
    return _ACHIEVED


def _trained(run_dir: Path) -> dict[str, Any]:
    """The agent's settings as its run has them; empty for one that was copied elsewhere."""
    try:
        text = (run_dir / "run.json").read_text(encoding="utf-8")
        return json.loads(text)["manifest"]["agent"]
    except (OSError, ValueError, KeyError):
        return {}


def _sampling(
    pipe: PolicyPipeline, num_inference_steps: int | None, guidance_scale: float | None
) -> Sampling:
    own = pipe.config["evaluation"] or {}
    steps = num_inference_steps or own.get("num_inference_steps", 10)
    scale = own.get("guidance_scale", 1.0) if guidance_scale is None else guidance_scale
    return Sampling(steps, scale)
