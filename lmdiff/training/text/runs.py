"""Runs of text agents that a study needs: trained once, kept, measured once.

A study that was stopped goes on where it was, and several processes may share its folder.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

from lmdiff.config import load_agent
from lmdiff.evaluation.text import answer, solved_share
from lmdiff.goals.descriptions import Split
from lmdiff.pipelines.text_agents import load_text_agent
from lmdiff.text.config import TextAgentConfig
from lmdiff.text.tasks import make_task
from lmdiff.training.files import replace_json
from lmdiff.training.text.agent import train_text_agent

_FIRST_SEED = 1000  # of prompts to measure by: the first one that never trains


def seeded(agent: str, seed: int) -> TextAgentConfig:
    """A recipe with another seed."""
    config = cast(TextAgentConfig, load_agent(agent))
    return replace(config, training=replace(config.training, seed=seed))


def trained(config: TextAgentConfig, run_dir: Path, start: Path | None = None) -> Path:
    """Train, or go on, unless it is done; returns `run_dir`.

    Args:
        config: of the run.
        run_dir: gets the run, as by `lmdiff train`.
        start: another run, whose agent is the start.
    """
    if not (run_dir / "agent").is_dir():
        resume = any((run_dir / "checkpoints").glob("step-*"))
        init = None if start is None else start / "agent"
        print(f"{run_dir}: training", flush=True)
        train_text_agent(config, run_dir, init=init, resume=resume, quiet=True)
    return run_dir


def solved(run_dir: Path, config: TextAgentConfig, split: Split, prompts: int, seed: int) -> int:
    """How many prompts of the config's task a run's agent solves, greedily; measured once.

    Args:
        run_dir: of a finished run.
        config: whose task is asked.
        split: of the prompts.
        prompts: how many.
        seed: no other one asks the same prompts.
    """
    file = run_dir / f"solved-{split}-{prompts}-{seed}.json"
    if not file.exists():
        task = make_task(config.task)
        rows = task.rows(split, prompts, _FIRST_SEED + seed)
        texts = answer(load_text_agent(run_dir / "agent"), rows, _FIRST_SEED + seed).texts
        flags, _ = solved_share(task.solved, rows, texts)
        replace_json(file, {"solved": sum(flags), "prompts": len(rows)})
    return int(json.loads(file.read_text(encoding="utf-8"))["solved"])
