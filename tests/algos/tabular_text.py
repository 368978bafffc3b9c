"""A text model so small that every expectation is a sum: tables over all partly masked texts."""

import itertools
from types import SimpleNamespace

import torch
from torch import nn

from lmdiff.denoisers.masked_text import MaskedTextDenoiser, TextBatch
from lmdiff.denoisers.text_models import TextModelSpec

LENGTH, WORDS = 3, 3
MASK, PAD = WORDS, WORDS + 1
ORDERS = torch.tensor(list(itertools.permutations(range(LENGTH))))  # [6, L]


class Tabular(nn.Module):
    """Free logits for every place of every partly masked text of three letters."""

    def __init__(self, seed=0, scale=1.5):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        states = (WORDS + 1) ** LENGTH
        table = scale * torch.randn(states, LENGTH, WORDS + 1, generator=generator)
        self.table = nn.Parameter(table.double())

    def forward(self, input_ids, attention_mask, position_ids):
        places = (WORDS + 1) ** torch.arange(LENGTH)
        return SimpleNamespace(logits=self.table[(input_ids * places).sum(-1)])


def denoiser(seed=0, scale=1.5):
    return MaskedTextDenoiser(Tabular(seed, scale), TextModelSpec(MASK, PAD))


def batch(texts):
    ids = torch.tensor(texts)
    full = torch.ones_like(ids, dtype=torch.bool)
    return TextBatch(ids, full, full)


def every_text():
    return batch(list(itertools.product(range(WORDS), repeat=LENGTH)))


def table_of(model, x, draw):
    """[S, B, L]"""
    return torch.stack([model.log_probs(x, draw, sample) for sample in range(len(draw))])
