"""Which parts make which algorithm: networks, critics and targets, from a config and sizes."""

from dataclasses import dataclass

from lmdiff.algos.awr import AWR
from lmdiff.algos.bc import BC
from lmdiff.algos.config import AlgorithmConfig, FQLConfig
from lmdiff.algos.critics import Critic
from lmdiff.algos.dppo import DPPO
from lmdiff.algos.fpo import FPO
from lmdiff.algos.fql import FQL
from lmdiff.algos.gtp import GTP
from lmdiff.algos.idql import IDQL
from lmdiff.algos.qc import QC
from lmdiff.algos.sdac import SDAC
from lmdiff.denoisers.actions import ActionDenoiser
from lmdiff.denoisers.actors import OneStepPolicy
from lmdiff.denoisers.flow_map import FlowMap
from lmdiff.denoisers.policy_networks import PolicyMLP, PolicyNetwork, PolicyTransformer

Algorithm = BC | AWR | IDQL | FQL | QC | GTP | SDAC | FPO | DPPO
"""A module with `actor`, `critic` (or None) and `candidates`, which together act (selection.py);
`forward(batch, generator)`, whose `loss` is to be minimised; and `after_step()` for targets.
A batch is `Transitions`; for FPO and DPPO it is `Decisions` (on_policy.py)."""


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
    cells: tuple[int, int] = (0, 0)
    """Count and size of the like parts that an observation begins with."""


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
            history=sizes.history,
            cells=sizes.cells,
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


def make_critic(config: AlgorithmConfig, sizes: Sizes, horizon: int, count: int) -> Critic:
    """A fresh critic of chunks of `horizon` actions; 0: of situations."""
    return Critic(
        sizes.history * sizes.observation,
        sizes.action,
        horizon,
        sizes.words,
        width=config.critic.width,
        layers=config.critic.layers,
        count=count,
    )


def make_algorithm(config: AlgorithmConfig, sizes: Sizes) -> Algorithm:
    """A fresh algorithm; seed torch before, as its weights are drawn.

    Raises:
        UserError: settings that do not go together.
    """
    rate, dropout = config.critic.target_rate, config.condition_dropout

    def denoiser() -> ActionDenoiser:
        return ActionDenoiser(make_network(config, sizes))

    def student() -> OneStepPolicy:
        return OneStepPolicy(make_network(config, sizes, levels=0))

    def critic() -> Critic:
        return make_critic(config, sizes, sizes.horizon, config.critic.count)

    def value() -> Critic:
        return make_critic(config, sizes, 0, 1)

    match config.name:
        case "bc":
            return BC(denoiser(), dropout)
        case "awr":
            return AWR(denoiser(), critic(), value(), config.awr, rate, dropout)
        case "idql":
            return IDQL(denoiser(), critic(), value(), config.idql, rate, dropout)
        case "fql":
            return FQL(student(), denoiser(), critic(), config.fql, rate, dropout)
        case "qc" if config.qc.mode == "fql":
            fql = FQLConfig(
                alpha=config.qc.alpha, flow_steps=config.qc.flow_steps, normalize_q=False
            )
            return FQL(student(), denoiser(), critic(), fql, rate, dropout)
        case "qc":
            return QC(denoiser(), critic(), config.qc, rate, dropout)
        case "gtp":
            flow_map = FlowMap(make_network(config, sizes, levels=2))
            return GTP(flow_map, critic(), value(), config.gtp, rate, dropout)
        case "sdac":
            return SDAC(denoiser(), critic(), config.sdac, rate)
        case "fpo":
            return FPO(denoiser(), value(), config.fpo)
        case "dppo":
            return DPPO(denoiser(), value(), config.dppo)
