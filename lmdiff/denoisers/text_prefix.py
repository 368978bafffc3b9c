"""What a model computes of a prompt, computed once for all denoising steps.

Exact where the prompt attends to itself alone (`TextModelSpec.attention` = "prefix"): its keys and
values are then the same whatever stands in the completion. Where it also attends to the completion
they change with every step, and reuse would be an approximation (Fast-dLLM, arXiv:2505.22618;
dKV-Cache, arXiv:2505.15781); that is not done here.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from lmdiff.denoisers.text_models import TextModelSpec, logits_at, position_ids
from lmdiff.errors import UserError


class PromptStates:
    """Keys and values of B prompts, and the logits of their completions.

    Args:
        model: a transformers model that takes `past_key_values` (BERT and Llama types do).
        spec: its conventions, with attention `prefix`.
        ids: [B, P] prompts.
        mask: [B, P] bool; false for padding.

    Raises:
        UserError: another attention, or a model that keeps no states.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, spec: TextModelSpec, ids: Tensor, mask: Tensor):
        if spec.attention != "prefix":
            raise UserError(
                f"attention = {spec.attention!r}: prompts change; only prefix has states."
            )
        self.model, self.spec, self.length = model, spec, ids.shape[1]
        cache = DynamicCache()
        if self.length:
            # The head is not needed, but BERT computes it: at a single place.
            where = torch.zeros_like(mask, dtype=torch.bool)
            where[:1, :1] = True
            itself = torch.eye(self.length, dtype=torch.bool, device=ids.device)
            logits_at(
                model,
                spec,
                ids,
                mask,
                where,
                attention_mask=(mask.bool()[:, None, :] | itself)[:, None],
                past_key_values=cache,
                use_cache=True,
                **_positions(spec, mask, 0),
            )
            if cache.get_seq_length() != self.length:
                raise UserError(
                    f"{type(model).__name__} keeps no keys and values of a prompt: use full4d."
                )
        cached: Any = cache.layers
        self.layers = [(layer.keys, layer.values) for layer in cached]

    @torch.no_grad()
    def __call__(self, ids: Tensor, mask: Tensor, where: Tensor, rows: Tensor) -> Tensor:
        """[N, V] logits at the N places of `where`, as `logits_at` has them.

        Args:
            ids: [n, P + W] prompts and completions.
            mask: [n, P + W] bool.
            where: [n, P + W] bool, completion places.
            rows: [n] which of the B prompts these are.
        """
        # Steps append to what they are given, so each has a cache of its own.
        cache = DynamicCache([(keys[rows], values[rows]) for keys, values in self.layers])
        completion = slice(self.length, None)
        seen = mask.bool()[:, None, :].expand(-1, ids.shape[1] - self.length, -1)
        return logits_at(
            self.model,
            self.spec,
            ids[:, completion],
            mask[:, completion],
            where[:, completion],
            attention_mask=seen[:, None],
            past_key_values=cache,
            use_cache=True,
            **_positions(self.spec, mask, self.length),
        )


def _positions(spec: TextModelSpec, mask: Tensor, start: int) -> dict[str, Tensor]:
    return {"position_ids": position_ids(mask)[:, start:]} if spec.positions else {}
