"""Loading any transformers text model as a goal encoder's language model.

Encoder-only (BERT family), encoder-decoder (T5 family: the encoder part alone) and decoder-only
(Llama, Qwen, ...). Weights are read from safetensors only, and no code of a model repository runs.
"""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from lmdiff.errors import UserError
from lmdiff.goals import embedded


def resolve(name: str) -> tuple[str, bool]:
    """Where `embedded`, a local path or a hub name is loaded from, and whether that is a folder."""
    if name == "embedded":
        return str(embedded.folder()), True
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve()), True
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(
            f"There is no language model at {name}: the folder does not exist. Give a folder with "
            "config.json, a tokenizer and *.safetensors, a hub name (owner/name), or `embedded`."
        )
    return name, False


def digest(source: str) -> str | None:
    """The sha256 of a local model's weights; None if it has none in safetensors."""
    files = sorted(Path(source).glob("*.safetensors"))
    return embedded.digest(files) if files else None


def load(source: str, revision: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the text model (the encoder part, if it has a decoder of its own) and its tokenizer.

    Raises:
        UserError: it cannot be downloaded or read, or it is not a text model.
    """
    # Reading a local file needs no progress bar (downloads keep the hub's), and of the report on
    # what was not found in it only the missing weights matter: see below.
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        # Said, for transformers would else ask on a terminal whether to run the model's own code.
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
        # T5 and its kin have an encoder class of their own; a decoder is then never read at all.
        # What such a class saved no longer calls itself an encoder-decoder.
        encoder_only = any(name.endswith("EncoderModel") for name in config.architectures or [])
        split = config.is_encoder_decoder or encoder_only
        kind: Any = AutoModelForTextEncoding if split else AutoModel
        model, report = kind.from_pretrained(
            source,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"The language model {source!r} could not be loaded: {reason}\n"
            "It must be a transformers text model with weights in safetensors, by hub name or "
            "local path. Without a network (or with HF_HUB_OFFLINE=1), give a local folder or use "
            "the language model that needs no download: --goal.language-model embedded"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    # BERT's pooler is often absent; token states do not pass through it.
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing:
        raise UserError(
            f"The weights of {source!r} are incomplete: {len(missing)} tensors, such as "
            f"{missing[0]}, are missing and would be random. Get a complete copy of the model."
        )
    return model, tokenizer


def check_width(config: PreTrainedConfig, source: str, max_tokens: int) -> int:
    """The width of the token states.

    Raises:
        UserError: not a text model, or it reads fewer than `max_tokens` tokens.
    """
    # Families name these differently (d_model, n_embd, ...); transformers maps them, or has none.
    width = getattr(config, "hidden_size", None)
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(width, int):
        raise UserError(
            f"{source!r} ({config.model_type}) is not a plain text model: it has no hidden_size. "
            "Choose a text model of the BERT, T5, Llama or Qwen families, for example."
        )
    if isinstance(positions, int) and max_tokens > positions:
        raise UserError(
            f"max_tokens = {max_tokens}, but {source!r} reads at most {positions} tokens: "
            f"set --goal.max-tokens {positions} or less."
        )
    return width


def add_lora(model: PreTrainedModel, rank: int, alpha: int, dropout: float) -> PeftModel:
    """Wrap the model with fresh LoRA adapters where PEFT puts them by default for this family.

    Raises:
        UserError: PEFT knows no default place for this family.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none")
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 asks transformers for an attribute by its old name.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            return cast(PeftModel, get_peft_model(model, config))
    except ValueError as error:
        raise UserError(
            f"LoRA does not know where to adapt a {model.config.model_type} model: {error} "
            "Use --goal.adaptation frozen or full, or another language model."
        ) from error
