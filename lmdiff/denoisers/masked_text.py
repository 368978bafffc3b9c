"""The masked-diffusion text denoiser: what stands where text is hidden (see contract.py).

Its loss is the ELBO of masked diffusion: on average over draws it bounds `-log p(completion |
prompt)`, in nats (Sahoo et al., arXiv:2406.07524; Nie et al., arXiv:2502.09992).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lmdiff.denoisers.text_draws import exact_k_draw
from lmdiff.denoisers.text_models import TextModelSpec, token_log_probs
from lmdiff.denoisers.text_noise import TextDraw


class TextBatch(NamedTuple):
    """Prompts and completions of B rows, padded to L tokens on either side."""

    ids: Tensor
    """[B, L]; without masked tokens."""
    attention_mask: Tensor
    """[B, L] bool: where there is a token."""
    completion_mask: Tensor
    """[B, L] bool: the tokens that the model is to write; the others are the prompt. Where a model
    fills a fixed length, what follows its end token belongs here or is hidden by the attention
    mask: as it was when the text was sampled."""

    @property
    def lengths(self) -> Tensor:
        """[B] tokens of each completion."""
        return self.completion_mask.sum(-1)

    def rows(self, indices: Any) -> "TextBatch":
        """Some rows."""
        return TextBatch(*(part[indices] for part in self))

    def to(self, device: torch.device | str) -> "TextBatch":
        """The same on a device."""
        return TextBatch(*(part.to(device) for part in self))


DrawNoise = Callable[[Tensor, int, torch.Generator], TextDraw]


class MaskedTextDenoiser(nn.Module):
    """A denoiser (see contract.py) over `TextBatch`. The prompt, its condition, is part of x.

    Args:
        model: a transformers model with a language-modelling head and a mask token.
        spec: its conventions.
        noise: (completion mask, samples, generator) -> draw; a function of text_draws.py.
        samples: copies a draw.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: TextModelSpec,
        noise: DrawNoise = exact_k_draw,
        samples: int = 1,
    ):
        super().__init__()
        self.model = model
        self.spec = spec
        self.noise = noise
        self.samples = samples

    def draw_noise(self, x: TextBatch, generator: torch.Generator) -> TextDraw:
        """Masks and weights for `x`; `generator` is on the same device."""
        return self.noise(x.completion_mask.bool(), self.samples, generator)

    def log_probs(self, x: TextBatch, draw: TextDraw, sample: int) -> Tensor:
        """[B, L] log-probability of each token that copy `sample` of the draw asks for; else 0."""
        mask, asked = draw.masks[sample], draw.weights[sample] != 0
        seen = torch.where(mask, self.spec.mask_id, x.ids)
        attention = x.attention_mask.bool()
        prompt = attention & ~x.completion_mask.bool()
        return token_log_probs(self.model, self.spec, seen, attention, x.ids, asked, prompt)

    def token_losses(self, x: TextBatch, draw: TextDraw) -> Tensor:
        """[B, L] each token's part of the loss; their sum is `loss`.

        It holds the graphs of all S copies at once; lmdiff/algos/two_pass.py holds one.
        """
        losses = torch.zeros_like(draw.weights[0])
        for sample in range(len(draw)):
            losses = losses - draw.weights[sample] * self.log_probs(x, draw, sample)
        return losses

    def loss(self, x: TextBatch, condition: Any, draw: TextDraw) -> Tensor:
        """[B] nats; divide by `x.lengths` for the mean over tokens that SFT minimises.

        Args:
            x: B texts.
            condition: not read: the prompt is part of `x`.
            draw: from `draw_noise`.
        """
        return self.token_losses(x, draw).sum(-1)

    def sample(
        self, condition: TextBatch, generate: Callable[..., TextBatch], **settings: Any
    ) -> TextBatch:
        """New completions of prompts.

        Args:
            condition: prompts; their completions are not read.
            generate: (model, spec, prompts, **settings) -> texts, a pipeline's function.
            settings: of the sampler.
        """
        return generate(self.model, self.spec, condition, **settings)
