"""`algorithm = "rl"`: from a text agent's recipe to its `TextRLTrainer`, and the trained agent."""

from pathlib import Path
from typing import Any

import torch

from lmdiff.errors import UserError
from lmdiff.pipelines.text_agents import TextModel, make_text_pipeline, save_text_agent
from lmdiff.text.config import TextAgentConfig
from lmdiff.text.rl_config import TextRLConfig
from lmdiff.text.tasks import TextTask
from lmdiff.training.callbacks import Evaluate
from lmdiff.training.launch import make_accelerator
from lmdiff.training.precision import settled
from lmdiff.training.text.rl import TextRLTrainer


def train_rl(
    config: TextAgentConfig,
    task: TextTask,
    parts: TextModel,
    run_dir: Path,
    *,
    manifest: dict[str, Any],
    evaluate: Evaluate | None,
    resume: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Fine-tune on a task's rewards; returns the last metrics.

    Raises:
        UserError: settings that do not go together, no reward, or a model that nobody trained.
    """
    if config.model.source == "scratch" and manifest["init"] is None:
        raise UserError(
            "A model with fresh weights writes nothing that could be rewarded. Start from a "
            f"trained agent: lmdiff train {config.name} --init runs/{config.task.name}-sft"
        )
    if not task.rewards:
        raise UserError("There is no reward: --task.rewards NAME or package.module:function.")
    accelerator = make_accelerator()
    trainer = TextRLTrainer(
        make_text_pipeline(config, parts),
        task.rewards,
        rl_config(config, run_dir, accelerator.gradient_accumulation_steps),
        task.rows("train", config.task.examples, config.task.data_seed),
        accelerator=accelerator,
        manifest=manifest,
        spec=parts.spec,
        evaluate=evaluate,
    )
    metrics = trainer.train(resume, quiet=quiet)
    if accelerator.is_main_process:
        save_text_agent(config, parts, run_dir / "agent", metrics)
    accelerator.wait_for_everyone()
    return metrics


def rl_config(config: TextAgentConfig, run_dir: Path, accumulation: int = 1) -> TextRLConfig:
    """A recipe's [rl], [training] and [sampling] as the trainer's settings."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    training = settled(config.training, device)
    return TextRLConfig(
        **vars(config.rl),
        output_dir=str(run_dir),
        max_completion_length=config.sampling.generation_length,
        max_steps=training.max_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_schedule,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.gradient_clip,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=accumulation,
        ema_decay=training.ema_decay,
        bf16=training.mixed_precision == "bf16",
        torch_compile=training.compile,
        seed=training.seed,
        logging_steps=training.log_every,
        save_steps=training.checkpoint_every,
        save_total_limit=training.keep_checkpoints,
        eval_steps=training.evaluate_every,
        report_to=training.tracker,
    )
