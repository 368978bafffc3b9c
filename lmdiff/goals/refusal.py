"""Refusal: does the agent know this goal? Better a clear answer than a random walk.

A goal is scored by two views of the language model's mean-pooled states: a logistic regression
between taught phrases and sentences of other kinds (outlier exposure: Hendrycks et al. 2019,
arXiv:1812.04606), and the cosines to the nearest taught phrase and to the nearest of those
sentences. The first knows what strays look like, the others how far a stray of a new kind is from
anything taught, and whether it is nearer to a stray; on validation phrases their sum beats each,
and beats scores of single tokens. The language model's features before any
adaptation are used where they exist: what an adapter learns to ignore, a stray may consist of.
"""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Self, cast

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from scipy.stats import mannwhitneyu
from torch import Tensor
from torch.nn import functional as F

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.goals.encoder import GoalEncoder

MAX_CHARACTERS = 500
_PENALTY = 1e-3
"""Of the logistic regression's squared weights; 1e-4 to 1e-2 rank validation phrases alike."""
_COSINE = 5.0
"""Weight of the nearest phrase's cosine beside the standardised regression."""
_CONTRAST = 5.0
"""Weight of its lead over the nearest stray's cosine. On validation phrases it lifts the AUROC from
0.9965 to 0.9971, and what is accepted where 98.4% of the strays are refused from 97.7% to 98.7%."""


class KnownGoals(ModelMixin, ConfigMixin):
    """What the agent was taught, as a component that is saved and loaded with its pipeline.

    Build one with `KnownGoals.fit`; after `from_pretrained`, call `attach(encoder)`. The
    constructor only makes room for the saved buffers.

    Args:
        phrases: the taught phrases that are kept.
        labels: what each denotes; `nearest` names different ones.
        width: W of the encoder's states.
        strangers: how many sentences that were not taught are kept; 0 compares with none.
    """

    features: Tensor
    """[N, W]: unit-length pooled states of the kept phrases."""
    strange: Tensor
    """[strangers, W]: the same of sentences that were not taught."""
    weight: Tensor
    """[W]: regression weights, scaled to unit spread of the score."""
    bias: Tensor
    threshold: Tensor
    """Scores below it are refused."""

    @register_to_config
    def __init__(
        self, phrases: Sequence[str], labels: Sequence[str], width: int, strangers: int = 0
    ):
        super().__init__()
        self.register_buffer("features", torch.zeros(len(phrases), width))
        # Agents from before there were any have no such tensor.
        self.register_buffer("strange", torch.zeros(strangers, width), persistent=strangers > 0)
        self.register_buffer("weight", torch.zeros(width))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("threshold", torch.zeros(()))
        self._encoder: list[GoalEncoder] = []

    def attach(self, encoder: GoalEncoder) -> Self:
        """Use this encoder's features: the one that it was fit on, or that one loaded again."""
        if encoder.width != self.config["width"]:
            raise UserError(
                f"These known goals were fit on states of width {self.config['width']}, but the "
                f"goal encoder's have {encoder.width}: it is another language model."
            )
        # In a list: as a submodule it would be saved with this one, and twice in a pipeline.
        self._encoder = [encoder]
        return self

    @classmethod
    def fit(
        cls,
        encoder: GoalEncoder,
        known: Sequence[str],
        unknown: Sequence[str],
        validation_known: Sequence[str],
        validation_unknown: Sequence[str],
        labels: Sequence[str] | None = None,
        refused: float | None = None,
    ) -> Self:
        """Learn from training sentences; set the threshold on validation sentences.

        A thousand or two known phrases, evenly over places, are enough. With a fully trained
        language model, fit after training: its features have moved.

        Args:
            encoder: whose (base) features are used.
            known: phrases that the agent is taught.
            unknown: sentences that it is not taught.
            validation_known: as `known`, unseen.
            validation_unknown: as `unknown`, unseen.
            labels: what each known phrase denotes (any text); default: each its own.
            refused: share of `validation_unknown` that the threshold refuses; default: the
                threshold of highest balanced accuracy. Where few sentences are taught, new ones
                score far below those of validation, and the latter refuses most of them.
        """
        names = list(labels if labels is not None else known)
        self = cls(list(known), names, encoder.width, len(unknown))
        self.attach(encoder)
        torch.nn.Module.to(self, encoder.device)
        positive, negative = _features(encoder, known), _features(encoder, unknown)
        self.features.copy_(positive)
        self.strange.copy_(negative)
        weight, bias = _regression(positive, negative)
        spread = (torch.cat([positive, negative]) @ weight).std()
        self.weight.copy_(weight / spread)
        self.bias.copy_(bias / spread)
        accepted = self._scores(_features(encoder, validation_known)).cpu().numpy()
        strays = self._scores(_features(encoder, validation_unknown)).cpu().numpy()
        if refused is None:
            self.threshold.fill_(_best_threshold(accepted, strays))
        else:
            self.threshold.fill_(float(np.quantile(strays, refused)))
        return self

    def score(self, text: str) -> float:
        """How well the goal is known; higher is better. Only the order and `threshold` matter."""
        return float(self._scores(_features(self._attached(), [text]))[0])

    def scores(self, texts: Sequence[str]) -> list[float]:
        """`score` of many goals at once."""
        return self._scores(_features(self._attached(), texts)).tolist()

    def nearest(self, text: str, k: int = 3) -> list[str]:
        """The `k` taught phrases most like `text`, of different places as far as there are."""
        try:
            cosine = self.features @ _features(self._attached(), [text])[0].to(self.features)
            order = cosine.argsort(descending=True).tolist()
        except GoalNotUnderstood:
            order = list(range(len(self.config["phrases"])))
        return self._distinct(order, k)

    def check(self, text: str) -> None:
        """Return if the goal is known.

        Raises:
            GoalNotUnderstood: it is not, or is no readable sentence; `nearest` says what is known.
        """
        # Cheap and certain first: nothing unreadable or huge reaches the language model.
        flaw = _flaw(text)
        if flaw:
            examples = self._distinct(list(range(len(self.config["phrases"]))), 3)
            raise GoalNotUnderstood(f"{flaw} Goals that I know: {_quoted(examples)}.", examples)
        text = text.strip()
        try:
            known = self.score(text) >= float(self.threshold)
        except GoalNotUnderstood as error:
            raise GoalNotUnderstood(str(error), self.nearest(text)) from error
        if not known:
            nearest = self.nearest(text)
            shown = text if len(text) <= 80 else text[:77] + "..."
            raise GoalNotUnderstood(
                f"I was not taught the goal {shown!r}. The nearest goals that I know: "
                f"{_quoted(nearest)}.",
                nearest,
            )

    def _attached(self) -> GoalEncoder:
        if not self._encoder:
            raise RuntimeError("KnownGoals has no encoder: call attach(encoder) after loading it.")
        return self._encoder[0]

    def _scores(self, features: Tensor) -> Tensor:
        features = features.to(self.features)
        cosine = (features @ self.features.T).amax(1)
        score = features @ self.weight + self.bias + _COSINE * cosine
        if len(self.strange):
            score = score + _CONTRAST * (cosine - (features @ self.strange.T).amax(1))
        return score.float()

    def _distinct(self, order: Sequence[int], k: int) -> list[str]:
        phrases, labels = self.config["phrases"], self.config["labels"]
        firsts: dict[str, int] = {}
        for index in order:
            firsts.setdefault(labels[index], index)
            if len(firsts) == k:
                break
        chosen = list(firsts.values())
        chosen += [index for index in order[: 2 * k] if index not in chosen]
        return [phrases[index] for index in chosen[:k]]


def auroc(known_scores: Sequence[float], unknown_scores: Sequence[float]) -> float:
    """The chance that a known goal scores above an unknown one, ties half (Mann-Whitney)."""
    statistic = mannwhitneyu(known_scores, unknown_scores).statistic
    return float(statistic) / (len(known_scores) * len(unknown_scores))


def _features(encoder: GoalEncoder, texts: Sequence[str]) -> Tensor:
    """Unit-length mean-pooled base states, [B, W]; in pieces, to bound the memory."""
    pieces = [
        GoalEncoder.pooled(encoder.base(texts[start : start + 512]))
        for start in range(0, len(texts), 512)
    ]
    return F.normalize(torch.cat(pieces), dim=-1)


def _regression(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regression, both classes weighing half: weight [W] and bias [], for raw features."""
    X = torch.cat([positive, negative])
    y = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).to(X)
    share = torch.where(y > 0, 0.5 / len(positive), 0.5 / len(negative))
    mean, std = X.mean(0), X.std(0) + 1e-6
    Z = (X - mean) / std
    parameters = torch.zeros(X.shape[1] + 1, device=X.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = Z @ parameters[:-1] + parameters[-1]
        loss = F.binary_cross_entropy_with_logits(logits, y, share, reduction="sum")
        loss = loss + _PENALTY * parameters[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(cast(Callable[[], float], closure))  # torch's annotation asks for floats
    weight = parameters[:-1].detach() / std
    return weight, parameters[-1].detach() - mean @ weight


def _best_threshold(known: np.ndarray, unknown: np.ndarray) -> float:
    """The threshold of highest balanced accuracy; of several, the middle of the widest gap."""
    scores = np.unique(np.concatenate([known, unknown]))
    middles = (scores[:-1] + scores[1:]) / 2
    accuracy = [(known >= m).mean() + (unknown < m).mean() for m in middles]
    best = np.flatnonzero(np.isclose(accuracy, np.max(accuracy)))
    return float(middles[best[np.diff(scores)[best].argmax()]])


def _flaw(text: str) -> str | None:
    """Why a text cannot be a goal at all, in words; None if it can."""
    if len(text) > MAX_CHARACTERS:
        return (
            f"The goal has {len(text)} characters; I read at most {MAX_CHARACTERS}. "
            "Say it in one short sentence."
        )
    text = text.strip()
    if not text:
        return "The goal is empty: say where to go."
    # C*: control, format, surrogate, private and unassigned characters.
    if any(unicodedata.category(character)[0] == "C" for character in text):
        return "The goal holds control or unprintable characters: type it as one plain line."
    if not any(character.isalnum() for character in text):
        return f"The goal {text[:40]!r} has no words: say where to go."
    return None


def _quoted(phrases: Sequence[str]) -> str:
    return ", ".join(f"'{phrase}'" for phrase in phrases)
