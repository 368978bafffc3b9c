"""The trajectory network: a transformer over window steps that reads a goal by cross-attention."""

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

_LEVEL_OCTAVES = 4
_STATE_OCTAVES = 6
# A step moves a small fraction of the data's spread. Scaled up, differences need small weights
# only, which are learnt soon: after 250 steps the controller erred by 0.4 instead of 0.9 units.
_DIFFERENCE_GAIN = 40.0


class GoalContext(NamedTuple):
    """A goal as every layer reads it; the same for all denoising steps, so computed once."""

    keys: list[Tensor]
    """Per layer [B, heads, 2 + L, head width]."""
    values: list[Tensor]
    mask: Tensor
    """[B, 1, 1, 2 + L] bool: what may be read."""


def waves(values: Tensor, octaves: int) -> Tensor:
    """Values with their sines and cosines, octave by octave: `[..., size * (1 + 2 octaves)]`.

    Mazes change within a fraction of the data's spread; plain inputs learn that slowly
    (Tancik et al., arXiv:2006.10739).
    """
    angles = values[..., None] * (math.pi / 2 * 2 ** torch.arange(octaves, device=values.device))
    return torch.cat([values, angles.sin().flatten(-2), angles.cos().flatten(-2)], -1)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention [B, heads, n, head width]; on a CPU always in fp32.

    There, bf16 makes the gradient of small attentions ten times as slow (torch 2.13), and all else
    about three times as fast.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=mask
        )


def _scatter(rows: Tensor, where: Tensor, batch: int) -> Tensor:
    """Rows [n, ...] at their places among `batch` rows; zeros elsewhere."""
    return rows.new_zeros(batch, *rows.shape[1:]).index_copy(0, where, rows)


class TrajectoryTransformer(ModelMixin, ConfigMixin):
    """Predicts the noise process's target for windows of (observation, action, signal).

    Args:
        observation_size: size of an observation; likewise `action_size` (a whole chunk) and
            `signal_size`.
        goal_size: size of a goal state.
        words_width: width of the language model's token states.
        horizon: longest window.
        width, layers, heads: of the transformer.
        process, prediction: the noise process that it is trained under (see processes.py).
    """

    @register_to_config
    def __init__(
        self,
        observation_size: int,
        action_size: int,
        signal_size: int,
        goal_size: int,
        words_width: int,
        horizon: int,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        process: str = "flow",
        prediction: str = "sample",
    ):
        super().__init__()
        self.observation_size = observation_size
        self.group_sizes = (observation_size, action_size, signal_size)
        sample_size = sum(self.group_sizes)
        features = (
            sample_size
            + observation_size * (2 + 2 * _STATE_OCTAVES)
            + len(self.group_sizes) * (1 + 2 * _LEVEL_OCTAVES)
        )
        # Width 3: each step sees its neighbours.
        self.embed = nn.Conv1d(features, width, kernel_size=3, padding=1)
        # What is nearly linear in what a step sees (actions in displacements) need not wait until
        # the layers have learnt to pass it on.
        self.skip = nn.Conv1d(features, sample_size, kernel_size=3, padding=1)
        self.position = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.goal_embed = nn.Linear(goal_size * (1 + 2 * _STATE_OCTAVES), width)
        self.words_norm = nn.LayerNorm(words_width)
        self.words_embed = nn.Linear(words_width, width)
        # What is read when there is no goal; always there, so attention is never empty.
        self.nothing = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sample_size)
        for output in (self.head, self.skip):
            nn.init.zeros_(output.weight)
            nn.init.zeros_(cast(Tensor, output.bias))

    def read_goal(
        self,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        goal_state: Tensor,
        goal_state_given: Tensor,
    ) -> GoalContext:
        """Keys and values of the goal for every layer.

        Args:
            encoder_hidden_states: [B, L, words_width] token states of the words, or None.
            encoder_attention_mask: [B, L] bool, True for real tokens.
            goal_state: [B, goal_size], normalised.
            goal_state_given: [B] bool.
        """
        batch = len(goal_state)
        nothing = self.nothing.expand(batch, 1, -1)
        state = self.goal_embed(waves(goal_state, _STATE_OCTAVES))[:, None]
        parts = [self._read(torch.cat([nothing, state], 1))]
        mask = [torch.ones_like(goal_state_given)[:, None], goal_state_given[:, None]]
        if encoder_hidden_states is not None and encoder_attention_mask is not None:
            # Reading words is half of a step's work: rows without any are left out.
            said = encoder_attention_mask.any(1).nonzero()[:, 0]
            words = self.words_embed(self.words_norm(encoder_hidden_states[said]))
            parts.append([_scatter(part, said, batch) for part in self._read(words)])
            mask.append(encoder_attention_mask)
        layers = [torch.cat(layer, 2) for layer in zip(*parts, strict=True)]
        return GoalContext(
            keys=layers[0::2], values=layers[1::2], mask=torch.cat(mask, 1)[:, None, None]
        )

    def _read(self, context: Tensor) -> list[Tensor]:
        """Keys and values of tokens [B, L, width], in turn, for layer after layer."""
        return [part for block in self.blocks for part in block.read(context)]  # pyright: ignore[reportCallIssue]

    def forward(self, sample: Tensor, level: Tensor, goal: GoalContext) -> Tensor:
        """Prediction [B, H, observation + action + signal].

        Args:
            sample: [B, H, observation + action + signal], noisy, normalised; H <= horizon.
            level: [B, H, 3] noise level of each group, 0 clean to 1 noise.
            goal: from `read_goal`.
        """
        observation = sample[..., : self.observation_size]
        # Fine features count as far as they are clean: of noise they would be more noise, and the
        # network would learn to look away from them, also where they are given.
        clean = 1 - level[..., :1]
        moved = _DIFFERENCE_GAIN * observation.diff(dim=1) * clean[:, 1:] * clean[:, :-1]
        features = torch.cat(
            [
                sample,
                F.pad(moved, (0, 0, 1, 0)),
                F.pad(moved, (0, 0, 0, 1)),
                clean * waves(observation, _STATE_OCTAVES)[..., self.observation_size :],
                waves(level, _LEVEL_OCTAVES),
            ],
            -1,
        )
        features = features.transpose(1, 2)
        hidden = self.embed(features).transpose(1, 2)
        hidden = hidden + self.position[: sample.shape[1]]
        for block, key, value in zip(self.blocks, goal.keys, goal.values, strict=True):
            hidden = block(hidden, key, value, goal.mask)
        return self.head(self.norm(hidden)) + self.skip(features).transpose(1, 2)


class Block(nn.Module):
    """Self-attention over steps, cross-attention to the goal, and a feed-forward layer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_self = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out_self = nn.Linear(width, width)
        self.norm_goal = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out_goal = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def _split(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, tokens, head width] of a goal's tokens."""
        key, value = self.key_value(context).chunk(2, -1)
        return self._split(key), self._split(value)

    def forward(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """[B, H, width] to the same."""
        query, own_key, own_value = self.qkv(self.norm_self(hidden)).chunk(3, -1)
        own = attend(self._split(query), self._split(own_key), self._split(own_value))
        hidden = hidden + self.out_self(own.transpose(1, 2).flatten(-2))
        query = self._split(self.query(self.norm_goal(hidden)))
        told = attend(query, key, value, mask)
        hidden = hidden + self.out_goal(told.transpose(1, 2).flatten(-2))
        return hidden + self.mlp(self.norm_mlp(hidden))
