"""TextPipeline: prompts go in, texts come out of masks.

A diffusers pipeline: `from_pretrained`, `save_pretrained` (safetensors and JSON).

    pipe = TextPipeline.from_pretrained("runs/sudoku-rl/agent")
    result = pipe("0034002013424210", generation_length=16)
    print(result.text[0], result.step_map[0])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import BlockRefinementScheduler, DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdiff.denoisers.text_models import TextModelSpec, logits_at
from lmdiff.denoisers.text_prefix import PromptStates
from lmdiff.errors import UserError
from lmdiff.pipelines.text_sampling import (
    Logits,
    Order,
    SamplingSettings,
    row_generators,
    sample_tokens,
)
from lmdiff.text.tokenizer import decode_completion, encode_prompt, end_id


@dataclass
class TextPipelineOutput(BaseOutput):
    """Completions of B prompts, L tokens each."""

    text: list[str]
    """[B] up to the end token."""
    ids: Tensor
    """[B, L] tokens; never the mask token."""
    step_map: Tensor
    """[B, L] the step at which a token was written; -1 after the end, where none was needed."""
    lengths: Tensor
    """[B] tokens up to the end token, with it."""
    row_forwards: int
    """Model calls, counted by rows."""


class TextPipeline(DiffusionPipeline):
    """Masked text diffusion with any transformers model that has a mask token.

    Args:
        model: a language model with its head (masked, causal or its own class).
        tokenizer: of the model; `lmdiff.text.tokenizer` says how prompts become tokens.
        scheduler: decides greedy steps by confidence; see text_sampling.py. Optional.
        mask_id: the mask token; the tokenizer's by default.
        pad_id: the padding token; the tokenizer's by default.
        attention: how the model takes its attention mask, see `TextModelSpec`.
        shifted: whether its logits stand one place to the left, see `TextModelSpec`.
        positions: whether it takes position ids, see `TextModelSpec`.
        head: the part that is computed only where tokens are asked for, see `TextModelSpec`.
        task: name of the task it was trained for.
        agent: name of the agent.
        evaluation: settings of a call by default, such as `generation_length`.
        recipe: the agent's whole configuration, as a dictionary.
    """

    model_cpu_offload_seq = "model"
    _optional_components = ["scheduler"]  # noqa: RUF012 (diffusers reads a list)

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: BlockRefinementScheduler | None = None,
        mask_id: int | None = None,
        pad_id: int | None = None,
        attention: Literal["padding", "full4d", "prefix"] = "padding",
        shifted: bool = False,
        positions: bool = True,
        head: str | None = None,
        task: str = "",
        agent: str = "",
        evaluation: dict[str, Any] | None = None,
        recipe: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.register_modules(model=model, tokenizer=tokenizer, scheduler=scheduler)
        mask_id = _token("mask_id", mask_id, tokenizer.mask_token_id)
        pad_id = _token("pad_id", pad_id, tokenizer.pad_token_id)
        self.spec = TextModelSpec(mask_id, pad_id, attention, shifted, positions, head)
        self.register_to_config(
            mask_id=mask_id,
            pad_id=pad_id,
            attention=attention,
            shifted=shifted,
            positions=positions,
            head=head,
            task=task,
            agent=agent,
            evaluation=evaluation,
            recipe=recipe,
        )

    def encode(self, prompts: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Tokens [B, P] of prompts, padded on the left, and where they are none [B, P] bool.

        Raises:
            UserError: a prompt without tokens, or with the mask token.
        """
        rows = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.spec.pad_id)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            if self.spec.mask_id in row:
                raise UserError(f"The prompt contains the mask token: {prompts[i]!r}")
            ids[i, width - len(row) :] = torch.tensor(row)
            mask[i, width - len(row) :] = True
        return ids.to(self.device), mask.to(self.device)

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[Any],
        *,
        generation_length: int | None = None,
        num_inference_steps: int | None = None,
        block_length: int | None = None,
        order: Order | None = None,
        temperature: float | None = None,
        threshold: float | None = None,
        hide_later_blocks: bool | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> TextPipelineOutput:
        """Complete prompts. What is not given is as in `evaluation`, else as `SamplingSettings`.

        Args:
            prompts: texts or conversations (lists of messages); or one of them.
            generation_length: tokens of a completion, L.
            num_inference_steps: at most so many model calls; L by default.
            block_length: left-to-right blocks of so many tokens; none by default.
            order: which places are written first.
            temperature: of the tokens; 0 is deterministic.
            threshold: write more where the model is sure; see `SamplingSettings`.
            hide_later_blocks: shorter sequences; see `SamplingSettings`.
            generator: one a row, or one that all rows' are seeded from.

        Raises:
            UserError: settings or prompts that cannot be sampled.
        """
        given = {
            "generation_length": generation_length,
            "num_inference_steps": num_inference_steps,
            "block_length": block_length,
            "order": order,
            "temperature": temperature,
            "threshold": threshold,
            "hide_later_blocks": hide_later_blocks,
        }
        settings = self._settings({key: v for key, v in given.items() if v is not None})
        if len(prompts) == 0:
            raise UserError("No prompt was given.")
        one = isinstance(prompts, str) or isinstance(prompts[0], Mapping)
        texts = [prompts] if one else list(prompts)
        ids, mask = self.encode(texts)
        self._check_length(ids.shape[1], settings.generation_length)
        end = end_id(self.tokenizer)
        # Padding means "nothing is here", which no completion can contain.
        never = [] if self.spec.pad_id == end else [self.spec.pad_id]
        was_training = self.model.training
        self.model.eval()
        try:
            sampled = sample_tokens(
                self._logits(ids, mask),
                ids,
                mask,
                settings,
                mask_id=self.spec.mask_id,
                end_id=end,
                never=never,
                generators=row_generators(generator, len(texts)) if settings.random else None,
                scheduler=self.scheduler,
            )
        finally:
            self.model.train(was_training)
        return TextPipelineOutput(
            text=[decode_completion(self.tokenizer, row) for row in sampled.ids.tolist()],
            ids=sampled.ids,
            step_map=sampled.step_map,
            lengths=sampled.lengths,
            row_forwards=sampled.row_forwards,
        )

    def _logits(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Logits:
        if self.spec.attention == "prefix":
            return PromptStates(self.model, self.spec, prompt_ids, prompt_mask)
        return lambda ids, mask, where, rows: logits_at(self.model, self.spec, ids, mask, where)

    def _settings(self, given: dict[str, Any]) -> SamplingSettings:
        usual = dict(self.config["evaluation"] or {})
        if given.get("generation_length", usual.get("generation_length")) is None:
            raise UserError("Say how long the text may become: generation_length=...")
        length = usual.get("generation_length")
        if given.get("generation_length", length) != length:
            # Steps and blocks that were meant for another length need not fit this one.
            usual = {k: v for k, v in usual.items() if k not in _OF_LENGTH}
        try:
            return SamplingSettings(**{**usual, **given})
        except TypeError as error:
            raise UserError(f"The settings {usual} cannot be used: {error}") from error

    def _check_length(self, prompt: int, completion: int) -> None:
        most = getattr(self.model.config, "max_position_embeddings", None)
        if isinstance(most, int) and prompt + completion > most:
            raise UserError(
                f"A prompt of {prompt} tokens and generation_length = {completion} exceed the "
                f"{most} that the model can take."
            )


_OF_LENGTH = ("num_inference_steps", "block_length")


def _token(name: str, given: int | None, default: Any) -> int:
    found = default if given is None else given
    if not isinstance(found, int):
        raise UserError(f"The tokenizer does not say which token this is: give {name}=...")
    return found
