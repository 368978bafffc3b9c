"""Loading a text model of one's own. The only place where a model's own code may be let in.

Also which implementation of attention it is trained with.
"""

from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lmdiff.denoisers.text_models import TextModelSpec
from lmdiff.errors import UserError

Head = Literal["masked", "causal", "own"]

_CLASSES: dict[str, Any] = {
    "masked": AutoModelForMaskedLM,
    "causal": AutoModelForCausalLM,
    "own": AutoModel,  # LLaDA and Dream register their class with its head under this one
}


def load_text_model(
    source: str,
    head: Head,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load a language model with its head, from safetensors.

    Args:
        source: a local folder, or a hub name.
        head: which transformers class reads it: `masked` (BERT-type), `causal` (Llama-type) or
            `own` (the class that the repository itself brings: LLaDA, Dream).
        trust_remote_code: run the Python code that comes with the model. It can do anything that
            you can: read it first, and pin `revision`.
        revision: of a hub repository.
        dtype: of the weights.

    Raises:
        UserError: it cannot be read, needs code that was not allowed, or weights are missing.
    """
    if head not in _CLASSES:
        raise UserError(f"head = {head!r}: choose one of {', '.join(_CLASSES)}.")
    try:
        model, report = _CLASSES[head].from_pretrained(
            source,
            revision=revision,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"The text model {source!r} could not be loaded: {reason}\n"
            "It must be a transformers language model with weights in safetensors. If it brings "
            "code of its own, read that code and allow it with trust_remote_code."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"The weights of {source!r} do not fit head = {head!r}: {len(missing)} tensors, such "
            f"as {missing[0]}, are missing and would be random. Choose another head, or get a "
            "complete copy."
        )
    return model


def load_tokenizer(
    source: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; arguments as for `load_text_model`.

    Raises:
        UserError: it cannot be read, or needs code that was not allowed.
    """
    try:
        return AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"The tokenizer of {source!r} could not be loaded: {error}") from error


def prefer_plain_attention(
    model: PreTrainedModel | PeftModel, spec: TextModelSpec, device: torch.device, bf16: bool
) -> None:
    """Train with attention of single operations where torch's fused one is slow: bf16 on a CPU.

    Backward through the fused one took three quarters of an update there (BERT of 0.8M parameters,
    128 texts of 33 tokens: forward and backward 0.39 s, and 0.12 s without it; in float32 they are
    alike). Only for padding masks: a 4-D one of booleans is not what every implementation expects.
    """
    if bf16 and device.type == "cpu" and spec.attention == "padding":
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        inner.set_attn_implementation("eager")
