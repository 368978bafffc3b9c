"""From a text agent's config to its model and pipeline, to a folder, and back."""

import copy
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import BlockRefinementScheduler
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lmdiff.config import agent_from_dict, to_dict
from lmdiff.denoisers.text_loading import load_text_model, load_tokenizer
from lmdiff.denoisers.text_models import TextModelSpec, bert_model, bert_spec, check_text_model
from lmdiff.errors import UserError
from lmdiff.pipelines.text_card import write_text_card
from lmdiff.pipelines.text_pipeline import TextPipeline
from lmdiff.text.config import TextAgentConfig, TextModelConfig
from lmdiff.text.tokenizer import char_tokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TextModel:
    """A language model with what is needed to call it."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    spec: TextModelSpec


def make_text_model(
    config: TextModelConfig, alphabet: Sequence[str], init: Path | None = None
) -> TextModel:
    """The model that a config describes, ready to be trained.

    Args:
        config: of the model. With `init`, only its head part and adaptation are read.
        alphabet: characters and numbers that a fresh model reads.
        init: folder of a saved agent to start from (`find_agent`).

    Raises:
        UserError: a model that cannot be loaded, or whose conventions are stated wrongly.
    """
    if init is not None:
        pipe = load_text_agent(init, trust_remote_code=config.trust_remote_code)
        model, tokenizer, spec = pipe.model, pipe.tokenizer, pipe.spec
        if config.head_part:
            spec = replace(spec, head=config.head_part)
    elif config.source == "scratch":
        tokenizer = char_tokenizer(alphabet)
        mask_id, pad_id = (_token_id(tokenizer, role, "scratch") for role in ("mask", "pad"))
        model = bert_model(
            len(tokenizer), pad_id, config.max_length, config.width, config.layers, config.heads
        )
        spec = bert_spec(model, mask_id)
    else:
        model, tokenizer, spec = _load(config)
    model.eval()  # no dropout: every likelihood comes from one function
    if config.adaptation == "lora":
        model = _with_adapters(model, config)
    return TextModel(model, tokenizer, spec)


def _load(config: TextModelConfig) -> tuple[Any, Any, TextModelSpec]:
    revision = config.revision or None
    tokenizer = load_tokenizer(
        config.source, revision=revision, trust_remote_code=config.trust_remote_code
    )
    for role, token in (("mask_token", config.mask_token), ("pad_token", config.pad_token)):
        if token:
            known = tokenizer.convert_tokens_to_ids(token)
            if known is None or known == tokenizer.unk_token_id:
                raise UserError(f"model.{role} = {token!r}: the tokenizer has no such token.")
            setattr(tokenizer, role, token)
    mask_id, pad_id = (_token_id(tokenizer, role, config.source) for role in ("mask", "pad"))
    model = load_text_model(
        config.source,
        config.head,
        trust_remote_code=config.trust_remote_code,
        revision=revision,
        dtype=_DTYPES[config.dtype],
    )
    spec = TextModelSpec(
        mask_id,
        pad_id,
        config.attention,
        config.shifted,
        config.positions,
        config.head_part or None,
    )
    check_text_model(model, spec, len(tokenizer))
    return model, tokenizer, spec


def _token_id(tokenizer: Any, role: str, source: str) -> int:
    found = tokenizer.mask_token_id if role == "mask" else tokenizer.pad_token_id
    if not isinstance(found, int):
        raise UserError(
            f"The tokenizer of {source!r} names no {role} token: say which it is, "
            f"--model.{role}-token TOKEN"
        )
    return found


def _with_adapters(model: Any, config: TextModelConfig) -> PeftModel:
    targets = list(config.lora_targets)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
    )
    try:
        adapted = get_peft_model(model, lora)
    except ValueError as error:
        raise UserError(f"LoRA does not fit the model: {error}") from error
    assert isinstance(adapted, PeftModel)
    return adapted


def make_text_pipeline(config: TextAgentConfig, parts: TextModel) -> TextPipeline:
    """The pipeline of a model's present weights; adapters stay adapters."""
    spec = parts.spec
    sampling = {name: v for name, v in to_dict(config.sampling).items() if v is not None}
    return TextPipeline(
        parts.model,  # pyright: ignore[reportArgumentType] (a PeftModel is called alike)
        parts.tokenizer,
        BlockRefinementScheduler(),
        mask_id=spec.mask_id,
        pad_id=spec.pad_id,
        attention=spec.attention,
        shifted=spec.shifted,
        positions=spec.positions,
        head=spec.head,
        task=config.task.name,
        agent=config.name,
        evaluation=sampling,
        recipe=to_dict(config),
    )


def save_text_agent(
    config: TextAgentConfig, parts: TextModel, folder: Path, metrics: Mapping[str, Any]
) -> None:
    """Save the pipeline with its card; a half-written folder never takes the place of a whole.

    Adapters are merged into a copy of the weights: what is saved is a model like any other.
    """
    if isinstance(parts.model, PeftModel):
        merged: Any = copy.deepcopy(parts.model).merge_and_unload()
        parts = TextModel(merged, parts.tokenizer, parts.spec)
    written = folder.with_name(f".{folder.name}-writing")
    shutil.rmtree(written, ignore_errors=True)
    with _quiet():
        make_text_pipeline(config, parts).save_pretrained(written)
    write_text_card(written, config, metrics)
    shutil.rmtree(folder, ignore_errors=True)
    written.rename(folder)


def load_text_agent(folder: Path, *, trust_remote_code: bool = False) -> TextPipeline:
    """The pipeline saved in a folder.

    Args:
        folder: of the pipeline.
        trust_remote_code: run the code that its model brought along, if it did.

    Raises:
        UserError: a file is missing or damaged, or code would have to be run.
    """
    config = recipe_of(folder)
    head = config.model.head if config.model.source != "scratch" else "masked"
    try:
        with _quiet():
            model = load_text_model(
                str(folder / "model"),
                head,
                trust_remote_code=trust_remote_code,
                dtype=_DTYPES[config.model.dtype],
            )
            # Given as a part, the model's class is not looked up in model_index.json.
            return TextPipeline.from_pretrained(folder, model=model.eval(), use_safetensors=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"The agent in {folder} cannot be loaded ({error}). Train it again: lmdiff train AGENT "
            "--output OTHER_DIR"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars for files of a megabyte, no warnings of what diffusers cannot type-check."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.ERROR)
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        for library in (diffusers_logging, transformers_logging):
            library.enable_progress_bar()


def recipe_of(folder: Path) -> TextAgentConfig:
    """The config that a saved text agent was trained with.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = folder / "model_index.json"
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))["recipe"]
        config = agent_from_dict(recipe)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a text agent that lmdiff saved ({error!r}).") from error
    if not isinstance(config, TextAgentConfig):
        raise UserError(f"{path} is not a text agent.")
    return config
