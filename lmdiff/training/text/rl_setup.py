"""Whatever a user gives `TextRLTrainer`: as rows, as a pipeline, as settings of the loop."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from transformers import (
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lmdiff.config import TrainingConfig, to_dict
from lmdiff.denoisers.text_loading import load_text_model, load_tokenizer
from lmdiff.denoisers.text_models import TextModelSpec, bert_spec, check_text_model
from lmdiff.errors import UserError
from lmdiff.pipelines.text_pipeline import TextPipeline
from lmdiff.text.prompts import Row, check_prompts, read_prompts
from lmdiff.text.rl_config import TextRLConfig
from lmdiff.training.manifest import changed_fields, read_run

Dataset = str | Path | Iterable[Mapping[str, Any]]
"""A .jsonl or .parquet file, the id of a data set, or rows (also a `datasets.Dataset`)."""

_MAY_CHANGE = {
    *("output_dir", "max_steps", "logging_steps", "save_steps", "save_total_limit", "eval_steps"),
    *("report_to", "log_completions", "num_completions_to_print", "per_device_train_batch_size"),
}


def check_same_settings(args: TextRLConfig, run_dir: Path) -> None:
    """Refuse to resume a run under settings that would make it another (the loop checks its own).

    Raises:
        UserError: names them.
    """
    run = read_run(run_dir)
    if run is None or "rl" not in run["manifest"]:
        return  # the loop says that there is nothing to resume
    changed = set(changed_fields(run["manifest"]["rl"], to_dict(args))) - _MAY_CHANGE
    if changed:
        raise UserError(
            f"{run_dir} was trained with other settings of {', '.join(sorted(changed))}. Resume it "
            "as it was, or train anew with another output_dir."
        )


def training_config(args: TextRLConfig) -> TrainingConfig:
    """The loop's settings, by its own names."""
    return TrainingConfig(
        max_steps=args.max_steps,
        batch_size=args.per_device_train_batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=args.warmup_steps,
        lr_schedule=args.lr_scheduler_type,
        weight_decay=args.weight_decay,
        gradient_clip=args.max_grad_norm,
        ema_decay=args.ema_decay,
        mixed_precision="bf16" if args.bf16 else "no",
        checkpoint_every=args.save_steps,
        keep_checkpoints=args.save_total_limit,
        evaluate_every=args.eval_steps,
        log_every=args.logging_steps,
        tracker=args.report_to,
        compile=args.torch_compile,
        seed=args.seed,
    )


def rows_of(source: Dataset) -> list[Row]:
    """Rows, read and checked.

    Raises:
        UserError: names the row that is wrong.
    """
    return read_prompts(source) if isinstance(source, str | Path) else check_prompts(source)


def pipeline_of(
    model: str | Path | PreTrainedModel | TextPipeline,
    tokenizer: PreTrainedTokenizerBase | None,
) -> TextPipeline:
    """A pipeline around any of the models that a trainer takes.

    Raises:
        UserError: it cannot be loaded, has no tokenizer, or is no masked language model.
    """
    if isinstance(model, TextPipeline):
        return model
    if isinstance(model, str | Path):
        for folder in (Path(model), Path(model) / "agent"):
            if (folder / "model_index.json").is_file():
                return TextPipeline.from_pretrained(folder, use_safetensors=True)
        tokenizer = tokenizer or load_tokenizer(str(model))
        model = load_text_model(str(model), "masked")
    if tokenizer is None:
        raise UserError("Which tokenizer does the model have? Give processing_class=...")
    pipe = TextPipeline(model, tokenizer)
    check_text_model(model, pipe.spec, len(tokenizer))
    return pipe


def rebuilt(pipe: TextPipeline, model: Any) -> TextPipeline:
    """The same pipeline around another model."""
    settings = {k: v for k, v in pipe.config.items() if not k.startswith("_")}
    settings = {k: v for k, v in settings.items() if k not in ("model", "tokenizer", "scheduler")}
    return TextPipeline(model, pipe.tokenizer, pipe.scheduler, **settings)


def with_adapters(pipe: TextPipeline, peft_config: PeftConfig | None) -> TextPipeline:
    """The pipeline with adapters to train, if they are asked for."""
    if peft_config is None:
        return pipe
    return rebuilt(pipe, get_peft_model(pipe.model, peft_config))


def training_spec(pipe: TextPipeline) -> TextModelSpec:
    """With the head that a BERT is known to have: less to compute, the same numbers."""
    model: Any = pipe.model
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return bert_spec(inner, pipe.spec.mask_id) if isinstance(inner, BertForMaskedLM) else pipe.spec
