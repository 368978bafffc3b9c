"""Networks over action chunks: an MLP, which is fast, and a transformer, which reads words better.

Both read a situation once and then predict for chunks at noise levels. The number of levels is
1 for a denoiser, 2 for a flow map (from level, to level), 0 for a one-step policy.
"""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from lmdiff.denoisers.network import waves
from lmdiff.denoisers.situation import CellReader, GoalReader, Situation
from lmdiff.goals.encoder import GoalTokens

_LEVEL_OCTAVES = 4


class PolicyMLP(ModelMixin, ConfigMixin):
    """A residual MLP over (chunk, levels, observation, goal vector).

    Args:
        observation_size: of a situation (its whole history).
        action_size: of one action.
        horizon: actions in a chunk.
        words_width: width of the language model's token states.
        width, layers: of the MLP.
        goal_width: of the vector that words become.
        levels: noise levels that it is told.
        process, prediction: the noise process that it is trained under (see processes.py).
        history: observations in a situation.
        cells: (count, size) of the like parts that each observation begins with; (0, 0): none.
    """

    @register_to_config
    def __init__(
        self,
        observation_size: int,
        action_size: int,
        horizon: int,
        words_width: int,
        width: int = 512,
        layers: int = 4,
        goal_width: int = 128,
        levels: int = 1,
        process: str = "flow",
        prediction: str = "velocity",
        history: int = 1,
        cells: tuple[int, int] = (0, 0),
    ):
        super().__init__()
        self.goal_reader = GoalReader(words_width, goal_width)
        self.cell_reader = CellReader(*cells, history, goal_width) if cells[0] else None
        context = observation_size + goal_width
        if self.cell_reader is not None:
            context += self.cell_reader.width
        features = horizon * action_size + levels * (1 + 2 * _LEVEL_OCTAVES)
        self.read_in = nn.Linear(context, width)
        self.embed = nn.Linear(features, width)
        self.blocks = nn.ModuleList(_Residual(width) for _ in range(layers - 1))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, horizon * action_size))
        nn.init.zeros_(self.head[1].weight)  # pyright: ignore[reportArgumentType]

    def read(self, situation: Situation) -> Tensor:
        """What the network needs of situations: [B, width]; the same for all denoising steps."""
        goal = self.goal_reader(situation)
        seen = [situation.observation, goal]
        if self.cell_reader is not None:
            seen.append(self.cell_reader(situation.observation, goal))
        return self.read_in(torch.cat(seen, -1))

    def forward(self, sample: Tensor, level: Tensor, context: Any) -> Tensor:
        """Prediction [B, horizon, action] for chunks `sample` at `level` [B, levels]."""
        features = torch.cat([sample.flatten(1), waves(level, _LEVEL_OCTAVES)], -1)
        hidden = self.embed(features) + context
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden).view(sample.shape)


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.layers(hidden)


class PolicyTransformer(ModelMixin, ConfigMixin):
    """A transformer over the actions of a chunk; it reads words token by token.

    Each layer attends to the chunk's actions, to the observations of the history (a token each)
    and to the goal's token states.

    Args:
        observation_size: of a situation (its whole history).
        action_size: of one action.
        horizon: actions in a chunk.
        words_width: width of the language model's token states.
        history: observations in a situation.
        width, layers, heads: of the transformer.
        levels: noise levels that it is told.
        process, prediction: the noise process that it is trained under (see processes.py).
    """

    @register_to_config
    def __init__(
        self,
        observation_size: int,
        action_size: int,
        horizon: int,
        words_width: int,
        history: int = 1,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        levels: int = 1,
        process: str = "flow",
        prediction: str = "velocity",
    ):
        super().__init__()
        self.see = nn.Linear(observation_size // history, width)
        self.words_norm = nn.LayerNorm(words_width)
        self.words_embed = nn.Linear(words_width, width)
        self.nothing = nn.Parameter(torch.randn(width) * 0.02)
        self.embed = nn.Linear(action_size, width)
        self.level_embed = nn.Linear(levels * (1 + 2 * _LEVEL_OCTAVES), width)
        self.position = nn.Parameter(torch.randn(history + horizon, width) * 0.02)
        layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerDecoder(layer, layers)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_size))
        nn.init.zeros_(self.head[1].weight)  # pyright: ignore[reportArgumentType]

    def read(self, situation: Situation) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of the history [B, history, width]; of the words [B, 1 + L, width]; their mask."""
        history = self.config["history"]
        seen = self.see(situation.observation.unflatten(1, (history, -1)))
        words = situation.read(self, self._embed_words)[situation.goal]
        mask = nn.functional.pad(situation.words.mask, (1, 0), value=True)[situation.goal]
        return seen + self.position[:history], words, mask

    def _embed_words(self, goals: GoalTokens) -> Tensor:
        words = self.words_embed(self.words_norm(goals.states))
        return torch.cat([self.nothing.expand(len(words), 1, -1), words], 1)

    def forward(self, sample: Tensor, level: Tensor, context: Any) -> Tensor:
        """Prediction [B, horizon, action] for chunks `sample` at `level` [B, levels]."""
        seen, words, mask = context
        history = seen.shape[1]
        noise = self.level_embed(waves(level, _LEVEL_OCTAVES))[:, None]
        chunk = self.embed(sample) + self.position[history:] + noise
        hidden = self.blocks(torch.cat([seen, chunk], 1), words, memory_key_padding_mask=~mask)
        return self.head(hidden[:, history:])


PolicyNetwork = PolicyMLP | PolicyTransformer
