"""`lmdiff bench`: times that anyone can have on their own machine."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from lmdiff.config import AgentConfig, load_control_agent
from lmdiff.errors import UserError
from lmdiff.evaluation.agents import load_pipeline, settings_of
from lmdiff.evaluation.bench_generate import generate_speed, generate_sudoku
from lmdiff.evaluation.bench_memory import text_memory
from lmdiff.evaluation.bench_policy import policy_action, policy_step
from lmdiff.evaluation.bench_text import Table, text_step
from lmdiff.evaluation.bench_training import checkpoint_share, imitation_work, ranks_beside_one
from lmdiff.evaluation.results import format_value, write_result
from lmdiff.pipelines.goal_pipeline import GoalPipeline
from lmdiff.pipelines.text_agents import load_text_agent
from lmdiff.saved_agents import find_agent

if TYPE_CHECKING:
    from lmdiff.verbs import Bench

_WARM_UP = 5
T = TypeVar("T")


def bench(command: "Bench") -> int:
    """Measure what the command names; prints, and returns the exit code."""
    if command.repeats is not None and command.repeats < 1:
        raise UserError(f"--repeats {command.repeats}: at least 1 is needed.")
    line, title, columns = f"lmdiff bench {command.what}", None, None
    if command.what == "text-memory":
        title, columns, rows = text_memory()
    elif command.what == "policy-step":
        repeats = command.repeats or 7
        line += f" --repeats {repeats}"
        title, columns, rows = _on_one_thread(lambda: policy_step(repeats))
    elif command.what == "policy-action":
        repeats = command.repeats or 50
        line += f" --repeats {repeats}"
        title, columns, rows = _on_one_thread(lambda: policy_action(repeats))
    elif command.what == "text-step":
        repeats = command.repeats or 7
        line += f" --repeats {repeats}"
        title, columns, rows = _on_one_thread(lambda: text_step(repeats))
    elif command.what == "generate":
        repeats = command.repeats or 7
        line += f" --repeats {repeats}"
        title, columns, rows = _on_one_thread(lambda: _generate(command.agent, repeats))
        line += f" --agent {command.agent}" if command.agent else ""
    elif command.what == "checkpoint":
        agents = (command.agent,) if command.agent else ("pointmaze-medium",)
        repeats = command.repeats or 10
        line += f" --repeats {repeats}"
        title, columns, rows = checkpoint_share(agents, repeats)
    elif command.what == "ranks":
        repeats = command.repeats or 3
        line += f" --repeats {repeats}"
        title, columns, rows = ranks_beside_one((command.agent,) if command.agent else (), repeats)
    else:
        command = replace(
            command, agent=command.agent or "pointmaze-medium", repeats=command.repeats or 50
        )
        line += f" --agent {command.agent} --repeats {command.repeats}"
        rows = _timings(command)
    shown = columns or {key: key for key in rows[0]}
    for row in rows:
        print(" | ".join(format_value(row.get(key)) for key in shown))
    if command.output is not None:
        write_result(command.output, line, [0], rows, title=title, columns=columns)
    if command.json:
        print(json.dumps({"rows": rows}))
    return 0


def _on_one_thread(measure: Callable[[], T]) -> T:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        return measure()
    finally:
        torch.set_num_threads(before)


def _generate(agent: str, repeats: int) -> Table:
    if not agent:
        return generate_speed(repeats)
    return generate_sudoku(load_text_agent(find_agent(agent)), repeats)


def _timings(command: "Bench") -> list[dict[str, Any]]:
    """Of a plan, an action or a training step, on one thread and on all."""
    work, about = _train_step(command) if command.what == "train" else _inference(command)
    rows = []
    before = torch.get_num_threads()
    try:
        for threads in dict.fromkeys((1, os.cpu_count() or 1)):
            torch.set_num_threads(threads)
            rows.append({"what": command.what, "threads": threads} | about | _time(work, command))
    finally:
        torch.set_num_threads(before)
    return rows


def _time(work: Callable[[], object], command: "Bench") -> dict[str, Any]:
    """Median and the middle half of `repeats` timings, in milliseconds, after a warm-up."""
    for _ in range(_WARM_UP):
        work()
    times = []
    for _ in range(command.repeats or 1):
        began = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began))
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75]).tolist()
    return {"ms": {"mean": median, "low": low, "high": high, "unit": "ms"}, "repeats": len(times)}


def _inference(command: "Bench") -> tuple[Callable[[], object], dict[str, Any]]:
    """One plan, or one action chunk, at batch 1; the goal's words are encoded once before."""
    try:
        pipe = load_pipeline(find_agent(command.agent))
    except UserError:
        pipe = _untrained(load_control_agent(command.agent))
    settings = settings_of(pipe)
    observation = np.zeros((1, pipe.network.group_sizes[0]), np.float32)
    goal = pipe.encode_goal("go to the bottom right corner")
    waypoints = np.zeros((1, pipe.network.config["horizon"] - 1, observation.shape[1]), np.float32)
    about = {
        "agent": command.agent,
        "parameters": sum(p.numel() for p in pipe.network.parameters()),
        "horizon": pipe.network.config["horizon"],
        "steps": settings.num_inference_steps if command.what == "plan" else 1,
    }

    def plan() -> object:
        return pipe(
            goal,
            observation=observation,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            projection_steps=settings.projection_steps,
        )

    def action() -> object:
        return pipe.act(observation, waypoints)

    return (plan if command.what == "plan" else action), about


def _untrained(config: AgentConfig) -> GoalPipeline:
    from lmdiff.data.normalizer import Normalizer
    from lmdiff.denoisers.recorded_hops import RecordedHops
    from lmdiff.tasks.pointmaze import PointMaze
    from lmdiff.training.agent import make_pipeline
    from lmdiff.training.imitation import ImitationModule

    task = PointMaze(config.task.name)
    channels = task.observation_size + config.denoiser.stride * task.action_size + 1
    normalizer = Normalizer(mean=[0.0] * channels, std=[1.0] * channels)
    recorded = None
    if config.data.recorded_hops > 0:
        recorded = RecordedHops(config.data.recorded_hops, task.observation_size)
    module = ImitationModule(config, normalizer, recorded_hops=recorded)
    return make_pipeline(config, module, known_goals=None)


def _train_step(command: "Bench") -> tuple[Callable[[], object], dict[str, Any]]:
    """One training step (forward, backward, AdamW) of a batch whose words are known."""
    from lmdiff.training.precision import settled

    config = load_control_agent(command.agent)
    module, batch = imitation_work(config)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    generator = torch.Generator().manual_seed(0)
    precision = settled(config.training, torch.device("cpu")).mixed_precision

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = module(batch, generator)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    about = {
        "agent": command.agent,
        "parameters": sum(p.numel() for p in trained),
        "batch": config.training.batch_size,
        "precision": precision,
    }
    return step, about
