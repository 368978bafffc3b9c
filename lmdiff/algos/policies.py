"""Which parts make which algorithm: networks, critics and targets, from a config and sizes."""

from dataclasses import dataclass

from lmdiff.algos.bc import BC
from lmdiff.algos.config import AlgorithmConfig
from lmdiff.denoisers.actions import ActionDenoiser
from lmdiff.denoisers.policy_networks import PolicyMLP, PolicyNetwork, PolicyTransformer
from lmdiff.errors import UserError

Algorithm = BC
"""A module with `actor`, `critic` (or None) and `candidates`, which together act (selection.py);
`forward(batch, generator)`, whose `loss` is to be minimised; and `after_step()` for targets."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a task and a language model ask of the networks."""

    observation: int
    """Of one observation."""
    history: int = 1
    """Observations in a situation."""
    action: int
    """Of one action."""
    horizon: int
    """Actions in a chunk."""
    words: int
    """Width of the language model's token states."""


def make_network(config: AlgorithmConfig, sizes: Sizes, levels: int = 1) -> PolicyNetwork:
    """A fresh network over chunks; `levels` as in policy_networks.py."""
    network = config.network
    observed = sizes.history * sizes.observation
    if network.kind == "mlp":
        return PolicyMLP(
            observed,
            sizes.action,
            sizes.horizon,
            sizes.words,
            width=network.width,
            layers=network.layers,
            levels=levels,
            process=network.process,
            prediction=network.prediction,
        )
    return PolicyTransformer(
        observed,
        sizes.action,
        sizes.horizon,
        sizes.words,
        history=sizes.history,
        width=network.width,
        layers=network.layers,
        heads=network.heads,
        levels=levels,
        process=network.process,
        prediction=network.prediction,
    )


def make_algorithm(config: AlgorithmConfig, sizes: Sizes) -> Algorithm:
    """A fresh algorithm; seed torch before, as its weights are drawn.

    Raises:
        UserError: settings that do not go together.
    """
    if config.name == "bc":
        return BC(ActionDenoiser(make_network(config, sizes)), config.condition_dropout)
    raise UserError(f"There is no algorithm {config.name!r} yet. Known: bc.")
