"""The goal prior: words go in, a state that they describe comes out.

Where to end is a smaller question than how to get there, so it has a denoiser of its own, which
sees many more phrases and states than a planner can in the same time: a flow over goal states
alone, under the words. The planner is then told both. (DALL-E 2 puts such a prior between text and
image, Ramesh et al., arXiv:2204.06125; SuSIE imagines subgoals, Black et al., arXiv:2310.10639.)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from lmdiff.denoisers.contract import Condition
from lmdiff.denoisers.network import attend, waves
from lmdiff.denoisers.processes import FlowMatching
from lmdiff.goals.encoder import GoalTokens

_OCTAVES = 4
_HEADS = 4
_KERNEL = 0.2  # standard deviation, in normalised units, of the kernel that counts neighbours


@dataclass(frozen=True)
class GoalDraw:
    """Times and noise of one evaluation of the loss."""

    level: Tensor
    """[B, K]"""
    noise: Tensor
    """[B, K, goal]"""


class GoalPrior(ModelMixin, ConfigMixin):
    """A denoiser (see contract.py) of normalised goal states; x is [B, K, goal], K for each goal.

    Args:
        goal_size: size of a goal state.
        words_width: width of the language model's token states.
        known_states: how many recorded states `known` holds; samples end at the nearest one.
        width: of each reading of the words.
        readings: learned queries that read the words.
        hidden: width of the denoising layers.
    """

    known: Tensor

    @register_to_config
    def __init__(
        self,
        goal_size: int,
        words_width: int,
        known_states: int,
        width: int = 128,
        readings: int = 8,
        hidden: int = 256,
    ):
        super().__init__()
        self.process = FlowMatching("sample")
        self.goal_size = goal_size
        self.norm = nn.LayerNorm(words_width)
        self.embed = nn.Linear(words_width, width)
        # Read where there are no words; always there, so attention is never empty.
        self.nothing = nn.Parameter(torch.randn(width) * 0.02)
        self.queries = nn.Parameter(torch.randn(_HEADS, readings, width // _HEADS) * 0.5)
        self.key_value = nn.Linear(width, 2 * width)
        self.read_norm = nn.LayerNorm(readings * width)
        features = (goal_size + 1) * (1 + 2 * _OCTAVES)
        self.of_words = nn.Linear(readings * width, hidden)
        self.of_sample = nn.Linear(features, hidden)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(2))
        self.head = nn.Linear(hidden, goal_size)
        self.register_buffer("known", torch.zeros(known_states, goal_size))

    def read(self, words: GoalTokens | None, batch: int) -> Tensor:
        """What the words say: [B, hidden]. The same for all denoising steps."""
        tokens = self.nothing.expand(batch, 1, -1)
        mask = torch.ones(batch, 1, dtype=torch.bool, device=tokens.device)
        if words is not None:
            tokens = torch.cat([tokens, self.embed(self.norm(words.states))], 1)
            mask = torch.cat([mask, words.mask], 1)
        key, value = (
            part.unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for part in self.key_value(tokens).chunk(2, -1)
        )
        queries = self.queries.expand(batch, -1, -1, -1)
        told = attend(queries, key, value, mask[:, None, None])
        return self.of_words(self.read_norm(told.transpose(1, 2).flatten(1)))

    def forward(self, sample: Tensor, level: Tensor, told: Tensor) -> Tensor:
        """The clean states [B, K, goal] that noisy ones stand for.

        Args:
            sample: [B, K, goal], noisy, normalised.
            level: [B, K] noise level.
            told: [B, hidden] from `read`.
        """
        features = torch.cat([waves(sample, _OCTAVES), waves(level[..., None], _OCTAVES)], -1)
        hidden = self.of_sample(features) + told[:, None]
        for layer in self.layers:
            hidden = hidden + layer(F.gelu(hidden))
        return self.head(F.gelu(hidden))

    def draw_noise(self, x: Tensor, generator: torch.Generator) -> GoalDraw:
        """Noise for states `x` [B, K, goal]; `generator` is on the same device."""
        return GoalDraw(
            level=torch.rand(x.shape[:2], generator=generator, device=x.device),
            noise=torch.randn(x.shape, generator=generator, device=x.device),
        )

    def loss(self, x: Tensor, condition: Condition, draw: GoalDraw) -> Tensor:
        """[B] squared errors of the clean states, averaged over K and the states' dimensions."""
        xt = self.process.corrupt(x, draw.noise, draw.level[..., None])
        error = self(xt, draw.level, self.read(condition.words, len(x))) - x
        return error.square().mean((1, 2))

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        batch: int,
        num_inference_steps: int = 10,
        candidates: int = 8,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """[B, goal] states that the words of B goals describe, each one of `known`.

        Of the candidates that are drawn for a goal, the one with most of the others around it is
        taken: where the words were new, a single draw may be the unlikely reading. It may still
        fall between two places that both fit, into a wall; the nearest recorded state does not.

        Args:
            condition: the words.
            batch: B.
            num_inference_steps: denoising steps.
            candidates: draws for each goal; 1 takes the readings as often as they are likely.
            generator: for reproducible goals.
        """
        device = self.nothing.device
        told = self.read(condition.words, batch)
        scheduler = self.process.scheduler()
        self.process.set_timesteps(scheduler, num_inference_steps, device)
        noise_device = generator.device if generator is not None else device
        size = (batch, candidates, self.goal_size)
        sample = torch.randn(size, generator=generator, device=noise_device).to(device)
        for timestep in scheduler.timesteps:
            level = self.process.level(timestep).expand(batch, candidates)
            output = self.process.predict(self(sample, level, told), sample, level[..., None])
            sample = scheduler.step(output, timestep, sample).prev_sample
        near = torch.cdist(sample, sample).div(_KERNEL).square().mul(-0.5).exp().sum(-1)
        sample = sample[torch.arange(batch, device=device), near.argmax(1)]
        return self.known[torch.cdist(sample, self.known).argmin(1)]
