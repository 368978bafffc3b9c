"""Any transformers model with a mask token, behind one function: logits that sit at their tokens.

Families differ in three ways, which `TextModelSpec` states and nothing guesses: which token is the
mask, how the model is told about padding, and whether the logits for a token stand one place to its
left (models that grew out of autoregressive ones, such as Dream).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from lmdiff.errors import UserError


@dataclass(frozen=True)
class TextModelSpec:
    """What must be known of a masked-diffusion text model to call it."""

    mask_id: int
    """The token that means "not yet written"."""
    pad_id: int
    """The token in places that the attention mask hides; its value changes nothing."""
    attention: Literal["padding", "full4d", "prefix"] = "padding"
    """`padding`: the model takes a [B, L] mask and attends both ways (BERT, LLaDA). `full4d`: it
    is causal unless it is given a [B, 1, L, L] mask (Dream, Llama-type classes). `prefix`: it is
    given such a mask, in which the prompt attends to the prompt alone. What it computes there then
    does not depend on the completion, and is computed once a text (text_prefix.py). A model must
    be trained as it is sampled."""
    shifted: bool = False
    """The logits at place i - 1 predict token i (Dream)."""
    positions: bool = True
    """The model takes `position_ids`. LLaDA's class does not, and as its positions are rotary, and
    so relative, it does without."""
    head: str | None = None
    """Dotted name of a part from which on the model treats each place by itself, up to the logits
    (`cls` in BERT, `head` in ModernBERT, `lm_head` in Llama). If given, that part is computed only
    where it is asked for: less memory and time, the same numbers."""

    def __post_init__(self):
        if self.attention not in ("padding", "full4d", "prefix"):
            raise UserError(f"attention = {self.attention!r}: choose padding, full4d or prefix.")
        if self.attention == "prefix" and self.shifted:
            raise UserError(
                "attention = 'prefix' with shifted logits: the first token's stand in the prompt, "
                "which would not see the completion. Use full4d."
            )
        if self.mask_id == self.pad_id:
            raise UserError(
                f"mask_id and pad_id are both {self.mask_id}: then a masked token cannot be told "
                "from padding. Name two tokens."
            )


def position_ids(mask: Tensor) -> Tensor:
    """[B, L] places counted over real tokens alone: padding on either side moves none of them."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def _model_arguments(spec: TextModelSpec, mask: Tensor, prompt: Tensor | None) -> dict[str, Tensor]:
    arguments: dict[str, Tensor] = {}
    if spec.attention == "padding":
        arguments["attention_mask"] = mask.long()
    else:
        seen = mask.bool()[:, None, :]
        if spec.attention == "prefix":
            if prompt is None:
                raise UserError("attention = 'prefix': say which tokens are the prompt.")
            seen = seen & (prompt.bool()[:, None, :] | ~prompt.bool()[:, :, None])
        # Padding sees itself: a row of attention that may look nowhere would be NaN.
        itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        arguments["attention_mask"] = (seen | itself)[:, None]
    if spec.positions:
        arguments["position_ids"] = position_ids(mask)
    return arguments


def _sources(spec: TextModelSpec, mask: Tensor) -> Tensor:
    """[B, L] place at which the logits for each token stand.

    Shifted: that of the real token before, whatever padding lies between; the first token of a row
    has none before it and, as Dream does, takes its own.
    """
    batch, length = mask.shape
    here = torch.arange(length, device=mask.device).expand(batch, length)
    if not spec.shifted:
        return here
    last_real = torch.where(mask.bool(), here, -1).cummax(-1).values
    before = F.pad(last_real[:, :-1], (1, 0), value=-1)
    return torch.where(before >= 0, before, here)


def token_logits(
    model: nn.Module,
    spec: TextModelSpec,
    ids: Tensor,
    mask: Tensor,
    prompt: Tensor | None = None,
) -> Tensor:
    """Logits of what stands at each place.

    Args:
        model: a transformers model with a language-modelling head.
        spec: its conventions.
        ids: [B, L] tokens, some of them `spec.mask_id`.
        mask: [B, L] bool or 0/1; true where there is a token, false where there is padding. Left
            and right padding give the same numbers as none.
        prompt: [B, L] bool, where attention is `prefix`: tokens that do not see the others.

    Returns:
        [B, L, V] aligned with `ids`. The mask token's is -inf: it is never an answer.
    """
    logits = model(input_ids=ids, **_model_arguments(spec, mask, prompt)).logits
    if spec.shifted:
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        logits = logits[rows, _sources(spec, mask)]
    return _without_mask_token(logits, spec)


def _without_mask_token(logits: Tensor, spec: TextModelSpec) -> Tensor:
    never = torch.arange(logits.shape[-1], device=logits.device) == spec.mask_id
    return logits.masked_fill(never, float("-inf"))


def logits_at(
    model: nn.Module,
    spec: TextModelSpec,
    ids: Tensor,
    mask: Tensor,
    where: Tensor,
    prompt: Tensor | None = None,
    **arguments: Any,
) -> Tensor:
    """[N, V] what `token_logits` has at the N places of `where`, and computed only there.

    Args:
        model: as for `token_logits`.
        spec: its conventions.
        ids: [B, L] what the model reads.
        mask: [B, L] where there is a token.
        where: [B, L] bool.
        prompt: as for `token_logits`.
        arguments: of the model, in place of those that follow from `mask` and `prompt`.
    """
    rows, columns = where.nonzero(as_tuple=True)
    places = rows, _sources(spec, mask)[rows, columns]
    arguments = arguments or _model_arguments(spec, mask, prompt)
    if spec.head is None:
        logits = model(input_ids=ids, **arguments).logits[places]
    else:
        with _only_at(_part(model, spec.head), places):
            logits = model(input_ids=ids, **arguments).logits[0]
    return _without_mask_token(logits, spec)


def _part(model: nn.Module, name: str) -> nn.Module:
    """A submodule by its name, inside of PEFT's wrapper if there is one."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    try:
        return inner.get_submodule(name)
    except AttributeError as error:
        raise UserError(f"head = {name!r}: {type(inner).__name__} has no such part.") from error


@contextmanager
def _only_at(head: nn.Module, places: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Show `head` [1, N, width] states, those at N places, in place of all [B, L, width].

    All its positional arguments are such states: BERT's blocks are given their residual as well.
    """

    def select(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(states[places][None] for states in arguments)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def token_log_probs(
    model: nn.Module,
    spec: TextModelSpec,
    ids: Tensor,
    mask: Tensor,
    targets: Tensor,
    where: Tensor,
    prompt: Tensor | None = None,
) -> Tensor:
    """[B, L] log-probabilities of `targets` at the places `where`, and 0 elsewhere; differentiable.

    The same numbers as `token_logits` gives, but the softmax and what backpropagation keeps of it
    cover the asked places only, in float32 or better.

    Args:
        model: as for `token_logits`.
        spec: its conventions.
        ids: [B, L] what the model reads.
        mask: [B, L] where there is a token.
        targets: [B, L] what it should say; never the mask token at a place that is asked.
        where: [B, L] bool.
        prompt: as for `token_logits`.
    """
    logits = logits_at(model, spec, ids, mask, where, prompt)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values = -F.cross_entropy(logits, targets[where], reduction="none")
    return values.new_zeros(where.shape).index_put(where.nonzero(as_tuple=True), values)


@torch.no_grad()
def check_text_model(model: nn.Module, spec: TextModelSpec, vocab_size: int) -> None:
    """Try what a wrong spec would break: padding that is seen, later tokens that are not.

    The shift cannot be tried on a model without knowing what it has learnt.

    Raises:
        UserError: names the field of the spec that looks wrong.
    """
    device = next(model.parameters()).device
    usable = [i for i in range(vocab_size) if i not in (spec.mask_id, spec.pad_id)][:7]
    ids = torch.tensor([usable[:1] * 3 + [spec.mask_id] * 3 + usable[-1:]], device=device)
    full = torch.ones_like(ids)
    pads, none = torch.full_like(ids[:, :3], spec.pad_id), torch.zeros_like(ids[:, :3])
    was_training = model.training
    model.eval()

    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        return token_logits(model, spec, ids, mask, torch.zeros_like(mask))

    try:
        plain = logits(ids, full).softmax(-1)
        other = torch.cat([ids[:, :-1], ids[:, :1]], 1)
        later = logits(other, full).softmax(-1)
        left = logits(torch.cat([pads, ids], 1), torch.cat([none, full], 1))
    finally:
        model.train(was_training)
    # Far above what lower precision does, far below what a hidden token does.
    if (plain - later)[:, :3].abs().max() == 0:
        raise UserError(
            f"attention = {spec.attention!r}: what comes later changes nothing before it, so the "
            "model is causal as it is called. Try full4d."
        )
    if (plain - left[:, 3:].softmax(-1)).abs().max() > 0.02:
        raise UserError(
            f"attention = {spec.attention!r}, positions = {spec.positions}: padding on the left "
            "changes what the model says. Try full4d, or positions = true if its class takes "
            "position_ids; else use batches without padding."
        )


def bert_model(
    vocab_size: int,
    pad_id: int,
    max_length: int = 512,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
) -> BertForMaskedLM:
    """The embedded default: a masked language model of the BERT type, with fresh weights.

    No dropout: old and new likelihoods of reinforcement learning must come from one function.
    """
    config = BertConfig(
        vocab_size=vocab_size,
        pad_token_id=pad_id,
        max_position_embeddings=max_length,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForMaskedLM(config)


def bert_spec(model: BertForMaskedLM, mask_id: int) -> TextModelSpec:
    """The spec of a `bert_model`: of its last layer, only attention must run at every place."""
    last = model.config.num_hidden_layers - 1
    head = f"bert.encoder.layer.{last}.attention.output"
    pad_id = model.config.pad_token_id
    assert pad_id is not None  # bert_model sets it
    return TextModelSpec(mask_id, pad_id, head=head)


def modernbert_model(
    vocab_size: int,
    pad_id: int,
    max_length: int = 512,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    local_attention: int = 128,
) -> ModernBertForMaskedLM:
    """A masked language model of the ModernBERT type (rotary, sliding windows), fresh weights."""
    special: dict[str, Any] = dict.fromkeys(
        ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    )
    config = ModernBertConfig(
        vocab_size=vocab_size,
        pad_token_id=pad_id,
        max_position_embeddings=max_length,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * hidden,
        local_attention=local_attention,
        **special,
    )
    return ModernBertForMaskedLM(config)


def llama_model(
    vocab_size: int,
    pad_id: int,
    max_length: int = 512,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
) -> LlamaForCausalLM:
    """A causal class, fresh weights; `attention="full4d"` makes it the base of LLaDA and Dream."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        pad_token_id=pad_id,
        max_position_embeddings=max_length,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=2 * hidden,
        use_cache=False,
    )
    return LlamaForCausalLM(config)
