"""`TextRLTrainer`: reinforcement learning of text diffusion, with TRL's surface.

    from lmdiff.text.rl_config import TextRLConfig
    from lmdiff.training.text.rl import TextRLTrainer

    def threes(prompts, completions, **columns):
        return [text.count("3") / 8 for text in completions]

    args = TextRLConfig(output_dir="runs/threes", max_completion_length=8, max_steps=40)
    trainer = TextRLTrainer("runs/sudoku-sft", threes, args, [{"prompt": "0034002013424210"}])
    trainer.train()
    trainer.save_model("runs/threes/agent")

The loop is the project's (lmdiff/training/loop.py): this file gives it a module and batches.
"""

import copy
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from lmdiff.algos.policy_loss import check_policy, needs_old, needs_reference
from lmdiff.config import to_dict
from lmdiff.denoisers.text_loading import prefer_plain_attention
from lmdiff.denoisers.text_models import TextModelSpec
from lmdiff.errors import UserError
from lmdiff.evaluation.sharing import over_ranks
from lmdiff.pipelines.text_pipeline import TextPipeline
from lmdiff.pipelines.text_sampling import SamplingSettings
from lmdiff.text.prompts import Row
from lmdiff.text.rewards import RewardFunction, check_weights, load_rewards
from lmdiff.text.rl_config import TextRLConfig
from lmdiff.training.callbacks import Evaluate, Event
from lmdiff.training.launch import make_accelerator
from lmdiff.training.loop import train
from lmdiff.training.ranks import gather_numbers, raising_together, shard_of
from lmdiff.training.seeds import EVALUATION, MASKS, derived_seed
from lmdiff.training.text.rl_logs import Callbacks, CompletionsLog, Signs
from lmdiff.training.text.rl_module import TextRLBatch, TextRLModule, policy_config
from lmdiff.training.text.rl_setup import (
    Dataset,
    check_same_settings,
    pipeline_of,
    rebuilt,
    rows_of,
    training_config,
    training_spec,
    with_adapters,
)
from lmdiff.training.text.rollouts import Rollouts, score_rows

Rewards = str | RewardFunction | Sequence[str | RewardFunction]


class TextRLTrainer:
    """Fine-tune a text diffusion model with rewards.

    Args:
        model: a `TextPipeline`; a folder that holds one (or a run folder); a transformers masked
            language model, or its name. Models with other conventions (shifted logits, 4-D masks)
            come as a `TextPipeline`, which states them.
        reward_funcs: `f(prompts, completions, **columns) -> list[float | None]`, or names; one or
            several. They get the data's other columns.
        args: settings.
        train_dataset: rows with a `prompt` and other columns.
        eval_dataset: the same, for `evaluate`.
        processing_class: tokenizer of a transformers model; one by name brings its own.
        peft_config: train adapters (LoRA) instead of all weights.
        callbacks: transformers' `TrainerCallback`s. They see on_train_begin, on_step_end, on_log,
            on_evaluate, on_save and on_train_end; `control.should_training_stop` is obeyed.
        accelerator: one of your own.
        manifest: what else run.json should tell.
        spec: conventions of the model, if more is known of it than its pipeline says (the head).
        evaluate: for a look during training (see loop.train) in place of `eval_dataset`'s rewards.

    Raises:
        UserError: settings that do not go together, a model or a data set that cannot be used.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel | TextPipeline,
        reward_funcs: Rewards,
        args: TextRLConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        *,
        accelerator: Accelerator | None = None,
        manifest: Mapping[str, Any] | None = None,
        spec: TextModelSpec | None = None,
        evaluate: Evaluate | None = None,
    ):
        self.args = args = args or TextRLConfig()
        check_policy(policy_config(args))
        self.rewards = load_rewards(reward_funcs)
        check_weights(self.rewards, args.reward_weights)
        self._sampling(0.0)  # refuses what cannot be sampled
        if train_dataset is None:
            raise UserError("There are no prompts: give train_dataset=...")
        self.train_rows = rows_of(train_dataset)
        self.eval_rows = None if eval_dataset is None else rows_of(eval_dataset)
        if accelerator is None:
            accelerator = make_accelerator()
            accelerator.gradient_accumulation_steps = args.gradient_accumulation_steps
        self.accelerator = accelerator
        if self.accelerator.gradient_accumulation_steps != args.gradient_accumulation_steps:
            raise UserError(
                f"The accelerator accumulates {self.accelerator.gradient_accumulation_steps} "
                f"batches, and gradient_accumulation_steps = {args.gradient_accumulation_steps}."
            )
        self.pipe = with_adapters(pipeline_of(model, processing_class), peft_config)
        policy = self.pipe.model
        adapted = isinstance(policy, PeftModel)
        reference = None
        if needs_reference(policy_config(args)) and not adapted:
            reference = copy.deepcopy(policy).requires_grad_(False).eval()
        self.module = TextRLModule(policy, spec or training_spec(self.pipe), args, reference)
        self.module.to(self.accelerator.device)
        prefer_plain_attention(policy, self.pipe.spec, self.accelerator.device, args.bf16)
        self.rollouts = Rollouts(self.pipe, self.train_rows, self.rewards, args)
        self.callbacks = Callbacks(callbacks, args, policy, self.pipe.tokenizer)
        self._evaluate = evaluate
        if evaluate is None and self.eval_rows is not None:
            self._evaluate = lambda _, __: self.evaluate()
        self.manifest = {"rl": to_dict(args), **(manifest or {})}
        self._round: dict[int, list[TextRLBatch]] = {}
        self._log = CompletionsLog(args, self.accelerator.is_main_process)
        self._signs = Signs(args)

    def train(
        self, resume_from_checkpoint: bool | str | Path | None = None, *, quiet: bool = False
    ) -> dict[str, Any]:
        """Train for `args.max_steps` updates; returns the last line of metrics.jsonl.

        Args:
            resume_from_checkpoint: true, or the run's folder: go on from its newest whole
                checkpoint. A resumed run is bit for bit (on a CPU) the uninterrupted one.
            quiet: no progress bar.

        Raises:
            UserError: as `lmdiff.training.loop.train`; also a reward that fails, if the run is to
                stop then. The checkpoints before stay.
            KeyboardInterrupt: Ctrl-C, after a checkpoint.
        """
        run_dir = Path(self.args.output_dir)
        named = isinstance(resume_from_checkpoint, str | Path)
        if named and Path(resume_from_checkpoint).resolve() != run_dir.resolve():
            raise UserError(
                f"resume_from_checkpoint = {resume_from_checkpoint}: a run goes on in its own "
                f"folder, from its newest checkpoint. Set output_dir to it (now {run_dir})."
            )
        if resume_from_checkpoint:
            check_same_settings(self.args, run_dir)
        self._log.begin(run_dir, bool(resume_from_checkpoint))
        self.callbacks.tell("on_train_begin", 0)
        metrics = train(
            training_config(self.args),
            self.module,
            self.batch,
            run_dir,
            accelerator=self.accelerator,
            evaluate=self._evaluate,
            watch=self._watch,
            round_steps=self.args.num_iterations,
            manifest=self.manifest,
            resume=bool(resume_from_checkpoint),
            onednn=True,
            quiet=quiet,
        )
        self.callbacks.tell("on_train_end", self.callbacks.state.global_step)
        return metrics

    def batch(self, number: int) -> TextRLBatch:
        """Batch `number` of this rank. Called in order within a round of num_iterations updates."""
        step, part = divmod(number, self.args.gradient_accumulation_steps)
        round_number, iteration = divmod(step, self.args.num_iterations)
        if iteration == 0:
            parts = self.args.gradient_accumulation_steps
            self._round[part] = self._new_round(round_number * parts + part)
        return self._round[part][iteration]

    @torch.no_grad()
    def _new_round(self, number: int) -> list[TextRLBatch]:
        """Roll out, and look at the roll-out through new masks for each of the updates."""
        args, accelerator = self.args, self.accelerator
        shard = shard_of(accelerator, number)
        precision = torch.autocast(accelerator.device.type, torch.bfloat16, args.bf16)
        with raising_together(accelerator), precision:
            rollout = self.rollouts(shard)
        self._log.last = rollout
        self.module.num_tokens += int(gather_numbers(accelerator, [rollout.tokens]).sum())
        batches = []
        for iteration in range(args.num_iterations):
            generator = torch.Generator(accelerator.device)
            generator.manual_seed(derived_seed(args.seed, shard, iteration, MASKS))
            draw = self.module.draw(rollout.x, rollout.step_map, generator)
            # The first update is on-policy: the old policy is the present one.
            compares = iteration > 0 and needs_old(self.module.config)
            with precision:
                old = self.module.table(rollout.x, draw) if compares else None
            batches.append(
                TextRLBatch(
                    rollout.x, draw, rollout.advantages, rollout.known, old, rollout.figures
                )
            )
        return batches

    def evaluate(self, eval_dataset: Dataset | None = None) -> dict[str, float]:
        """Rewards of the most probable completions (temperature 0) of the evaluation prompts.

        The prompts are shared among ranks, which must all call it and get the same figures.

        Raises:
            UserError: there are no prompts to evaluate on, or a reward failed on some rank.
        """
        rows = self.eval_rows if eval_dataset is None else rows_of(eval_dataset)
        if rows is None:
            raise UserError("There is nothing to evaluate on: give eval_dataset=...")
        size = self.args.per_device_train_batch_size

        def run(mine: list[int]) -> list[list[float]]:
            parts = [mine[first : first + size] for first in range(0, len(mine), size)]
            return [figures for part in parts for figures in self._judged(rows, part)]

        table = over_ranks(len(rows), run)
        rewards = [f"rewards/{name}/mean" for name in self.rewards]
        found: dict[str, float] = {}
        names = ["reward", *rewards, "completions/mean_length"]
        for name, column in zip(names, table.T, strict=True):
            known = column[~np.isnan(column)]
            found[name] = float(known.mean()) if len(known) else math.nan
        return found

    def _judged(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[list[float]]:
        """Of some rows: the reward, each function's (NaN where there is none), the length."""
        part = [rows[number] for number in numbers]
        seeds = [derived_seed(self.args.seed, n, stream=EVALUATION) for n in numbers]
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        prompts = [row["prompt"] for row in part]
        out = self.pipe(prompts, generator=noise, **self._sampling(0.0))
        scores = score_rows(self.rewards, part, out.text, self.args)
        rewards = [scores.total, *(scores.by_function[name] for name in self.rewards)]
        return [
            [*(math.nan if value is None else value for value in values), float(length)]
            for *values, length in zip(*rewards, out.lengths.tolist(), strict=True)
        ]

    def save_model(self, output_dir: str | Path) -> None:
        """Save the pipeline, whole (adapters are merged); also the adapters alone, in `adapter`."""
        if not self.accelerator.is_main_process:
            return
        folder = Path(output_dir)
        written = folder.with_name(f".{folder.name}-writing")
        shutil.rmtree(written, ignore_errors=True)
        model: Any = self.pipe.model
        pipe = self.pipe
        if isinstance(model, PeftModel):
            pipe = rebuilt(pipe, copy.deepcopy(model).merge_and_unload())
        pipe.save_pretrained(str(written))
        if isinstance(model, PeftModel):
            model.save_pretrained(str(written / "adapter"))
        shutil.rmtree(folder, ignore_errors=True)
        written.rename(folder)

    def _sampling(self, temperature: float) -> dict[str, Any]:
        args = self.args
        settings = SamplingSettings(
            generation_length=args.max_completion_length,
            num_inference_steps=args.num_inference_steps,
            block_length=args.block_length,
            order=args.order,
            temperature=temperature,
        )
        return {
            "generation_length": settings.generation_length,
            "num_inference_steps": settings.num_inference_steps or settings.generation_length,
            "block_length": settings.block_length or settings.generation_length,
            "order": settings.order,
            "temperature": temperature,
        }

    def _watch(self, event: Event, step: int, figures: dict[str, Any]) -> bool:
        if event == "log":
            figures["num_tokens"] = int(self.module.num_tokens)
            self._signs.look(figures)
            self._log.write(step)
            self.callbacks.tell("on_log", step, logs=figures)
            evaluated = {k: v for k, v in figures.items() if k.startswith("eval/")}
            if evaluated:
                self.callbacks.tell("on_evaluate", step, metrics=evaluated)
            return False
        return self.callbacks.tell("on_step_end" if event == "step" else "on_save", step)
