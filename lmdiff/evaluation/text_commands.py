"""The verbs `run` and `eval` of agents that write text."""

import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.evaluation.printing import print_rate, print_result
from lmdiff.evaluation.sharing import rank_and_size
from lmdiff.evaluation.summary import add_text_row
from lmdiff.evaluation.text import means_of, measure, share_of, solved_share
from lmdiff.evaluation.text_pictures import play, write_gif
from lmdiff.pipelines.text_agents import load_text_agent, recipe_of
from lmdiff.pipelines.text_pipeline import TextPipeline, TextPipelineOutput
from lmdiff.saved_agents import find_agent
from lmdiff.text.answers import text_of
from lmdiff.text.prompts import Row
from lmdiff.text.rewards import NAMED
from lmdiff.text.tasks import TextTask, make_task
from lmdiff.text.tokenizer import end_id, token_texts

if TYPE_CHECKING:
    from lmdiff.verbs import Eval, Run

_DONE, _NOT_SOLVED = 0, 4


def run_prompt(command: "Run") -> int:
    """`lmdiff run DIR PROMPT`."""
    folder = find_agent(command.agent)
    recipe = recipe_of(folder)
    task = make_task(recipe.task)
    result: dict[str, Any] = {
        "goal": command.goal,
        "prompt": command.goal,
        "understood": False,
        "nearest": [],
        "text": None,
        "success": False,
        "steps": 0,
        "forwards": 0,
        "video": None,
    }
    try:
        row = task.read(command.goal or "")
    except GoalNotUnderstood as error:
        print(error)
        print_result(result, as_json=command.json)
        return error.exit_code
    pipe = _load(folder, command)
    generator = torch.Generator().manual_seed(command.seed)
    began = time.perf_counter()
    found = pipe([row["prompt"]], generator=generator, **_settings(command))
    seconds = time.perf_counter() - began
    text = found.text[0]
    solved = _solved(task, row, text)
    output = command.output or folder.parent / "rollouts"
    prompt = text_of(row["prompt"])
    name = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
    video = _show(pipe, task, prompt, found, output / f"{name}-{command.seed}.gif", command)
    steps = len({step for step in found.step_map[0].tolist() if step >= 0})
    result |= {
        "prompt": prompt,
        "understood": True,
        "text": text,
        "success": solved,
        "steps": steps,
        "forwards": found.row_forwards,
        "seconds": round(seconds, 4),
        "seed": command.seed,
        "video": None if video is None else str(video),
    }
    if solved is not None:
        print("Right." if solved else "Wrong.", end=" ")
    print(f"{steps} steps, {found.row_forwards} model calls, {seconds:.2f} s")
    if video is not None:
        print(f"  video: {video}")
    print_result(result, as_json=command.json)
    return _NOT_SOLVED if solved is False else _DONE


def _load(folder: Path, command: "Run | Eval") -> TextPipeline:
    pipe = load_text_agent(folder, trust_remote_code=command.writing.trust_remote_code)
    if torch.accelerator.is_available():
        pipe.to(torch.accelerator.current_accelerator())
    return pipe


def _settings(command: "Run | Eval") -> dict[str, Any]:
    """What the command line says of sampling, for the pipeline's call."""
    given = asdict(command.writing) | {"num_inference_steps": command.num_inference_steps}
    del given["trust_remote_code"]
    return {name: value for name, value in given.items() if value is not None}


def _solved(task: TextTask, row: Row, text: str) -> bool | None:
    """Whether an answer is right; None where nothing can tell."""
    if task.solved not in NAMED:
        return None
    return solved_share(task.solved, [row], [text])[0][0]


def _show(
    pipe: TextPipeline,
    task: TextTask,
    prompt: str,
    found: TextPipelineOutput,
    path: Path,
    command: "Run",
) -> Path | None:
    """Play the denoising in the terminal, and write it as a GIF if one is wanted."""
    ids = found.ids[0, : int(found.lengths[0])].tolist()
    if ids[-1] == end_id(pipe.tokenizer):
        ids.pop()
    tokens, steps = token_texts(pipe.tokenizer, ids), found.step_map[0, : len(ids)].tolist()
    play(tokens, steps, columns=task.columns)
    if not command.video:
        return None
    return write_gif(path, prompt, tokens, steps, columns=task.columns)


def evaluate_text(command: "Eval") -> int:
    """`lmdiff eval DIR`: held-out prompts, each answered once, shared among ranks."""
    folder = find_agent(command.agent)
    recipe = recipe_of(folder)
    task, own = make_task(recipe.task), recipe.evaluation
    seed = own.seed if command.seed is None else command.seed
    rewards = command.reward or _trusted(task.rewards)
    solved = task.solved if task.solved in NAMED else ""
    if not solved and not rewards:
        raise UserError(
            f"Nothing is known that could score {recipe.name}: say --reward NAME or "
            "--reward module:function."
        )
    rows = task.rows("held_out", command.episodes or own.episodes, seed)
    pipe = _load(folder, command)
    settings = _settings(command)
    began = time.perf_counter()
    names = [*([solved] if solved else []), *rewards]
    measured = measure(pipe, rows, names, seed, own.batch_size, **settings)
    seconds = time.perf_counter() - began
    report: dict[str, Any] = {
        "agent": recipe.name,
        "kind": "text",
        "task": task.name,
        "algorithm": recipe.algorithm,
        "episodes": len(rows),
        "seeds": [seed],
        "training_seed": recipe.training.seed,
        "sampling": dict(pipe.config["evaluation"] or {}) | settings,
    }
    if solved:
        share = share_of(measured.rewards[solved])[1].to_dict()
        report |= {"success": share, "solved": share}
        print_rate("solved, held-out prompts", share)
    asked = {name: v for name, v in measured.rewards.items() if name != solved or name in rewards}
    means = means_of(asked)
    report["rewards"] = {name: interval.to_dict() for name, interval in means.items()}
    for name, interval in means.items():
        print(f"{f'reward {name}, mean':24} {interval}")
    report["forwards_per_text"] = round(measured.forwards, 2)
    report["seconds_per_text"] = round(seconds / len(rows), 5)
    print(f"{'model calls a text':24} {report['forwards_per_text']:g}")
    if rank_and_size()[0] == 0:
        (folder.parent / "eval.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        if command.output is not None:
            add_text_row(command.output, report, folder.parent)
    print_result(report, as_json=command.json)
    return _DONE


def _trusted(rewards: tuple[str, ...]) -> tuple[str, ...]:
    """Those that lmdiff brings: an agent may have been downloaded, and to import runs code."""
    foreign = [name for name in rewards if name not in NAMED]
    if foreign:
        print(f"Not scored: {', '.join(foreign)}. If you trust it, say --reward {foreign[0]}")
    return tuple(name for name in rewards if name in NAMED)
