"""Settings of the algorithms for policies. Imports nothing heavy, so `lmdiff --help` is quick."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from lmdiff.ranges import Count, Fraction, Natural, NonNegative, Positive, Range, Share

AlgorithmName = Literal["bc", "awr", "idql", "fql", "qc", "gtp", "sdac", "fpo", "dppo"]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The network over action chunks, and the noise process that it is trained under."""

    kind: Literal["mlp", "transformer"] = "mlp"
    """An MLP acts in a millisecond; a transformer reads words token by token."""
    width: Annotated[int, Range(2)] = 512
    layers: Count = 4
    heads: Count = 4
    """Of a transformer."""
    process: Literal["flow", "vp"] = "flow"
    """Flow matching (straight paths) or a variance-preserving diffusion."""
    prediction: Literal["sample", "velocity", "epsilon"] = "velocity"
    """What the network predicts: clean chunks, velocity (v), or (VP only) the noise."""


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """Critics, for the algorithms that have them."""

    width: Count = 512
    layers: Count = 4
    count: Count = 2
    """Critics in the ensemble."""
    discount: Share = 0.99
    """Of one environment step."""
    target_rate: Share = 0.005
    """How fast target networks follow (Polyak)."""


@dataclass(frozen=True, kw_only=True)
class AWRConfig:
    """Advantage-weighted imitation (EDP, GFP type): the weight is exp(advantage / temperature)."""

    expectile: Fraction = 0.7
    """Of the value function (IQL)."""
    temperature: Positive = 0.3
    """Of the advantages, in units of their standard deviation."""
    largest_weight: Positive = 100.0


@dataclass(frozen=True, kw_only=True)
class IDQLConfig:
    """IDQL: imitate, and act by the best of N samples under an expectile critic."""

    expectile: Fraction = 0.7
    candidates: Count = 32


@dataclass(frozen=True, kw_only=True)
class FQLConfig:
    """FQL: a flow imitates; a one-step student imitates the flow and climbs the critic."""

    alpha: NonNegative = 10.0
    """Weight of staying with the flow."""
    flow_steps: Count = 10
    normalize_q: bool = True
    """Divide the critic's term by its mean absolute value: alpha then means the same anywhere."""


@dataclass(frozen=True, kw_only=True)
class QCConfig:
    """Q-chunking: a critic of whole chunks; best of N, or FQL on chunks."""

    mode: Literal["best-of-n", "fql"] = "best-of-n"
    """QC, or QC-FQL."""
    candidates: Count = 32
    """Samples to choose from when acting (best-of-n)."""
    target_candidates: Count = 32
    """Samples to choose from in targets; the paper's 32 make most of a training step's cost."""
    flow_steps: Count = 10
    alpha: NonNegative = 100.0
    """Of QC-FQL: weight of staying with the flow; Q is not normalised there."""


@dataclass(frozen=True, kw_only=True)
class GTPConfig:
    """Generative trajectory policies: a flow map between any two levels, advantage-weighted."""

    expectile: Fraction = 0.7
    """Of the value function (IQL)."""
    temperature: Positive = 0.3
    """Of the advantages, in units of their standard deviation (the paper's 1 / eta)."""
    largest_weight: Positive = 100.0
    anchor: NonNegative = 1.0
    """Weight of the instantaneous (flow-matching) loss beside the map's consistency."""


@dataclass(frozen=True, kw_only=True)
class SDACConfig:
    """SDAC: a policy drawn towards exp(Q / alpha), from own experience alone."""

    temperature: Positive = 0.2
    """Alpha, in standard deviations of the proposals' values."""
    proposals: Annotated[int, Range(2)] = 32
    """Clean chunks that are proposed for each noisy one."""
    candidates: Count = 4
    """Samples to choose from when acting."""
    flow_steps: Count = 5
    """Denoising steps of the next chunk in targets."""


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """Advantages of the on-policy algorithms (fpo, dppo)."""

    trace: Share = 0.95
    """Lambda of the generalised advantages."""
    value_rounds: Natural = 2
    """First rounds in which only the value function learns: a trained policy has none yet."""


@dataclass(frozen=True, kw_only=True)
class FPOConfig:
    """FPO: PPO whose likelihoods are denoising losses."""

    objective: Literal["clip", "spo", "bgpo"] = "spo"
    """`clip`: the paper's clipped ratio. `spo`: a square pulls the ratio back instead; under `clip`
    all losses drift up together. `bgpo`: a linear bound of the ratio, without a range."""
    draws: Count = 8
    """Levels and noises for each chunk."""
    epsilon: Positive = 0.05
    """Range of the ratio."""
    largest_change: Positive = 3.0
    """Of one draw's loss."""
    scale: Positive = 1.0
    """Nats for a unit of the denoising loss (a mean over the chunk's numbers)."""


@dataclass(frozen=True, kw_only=True)
class DPPOConfig:
    """DPPO: PPO over the last steps of the denoising chain."""

    steps: Count = 10
    """Denoising steps of the whole chain; evaluate with as many."""
    trained_steps: Count = 5
    """The last ones of them, which learn."""
    deviation: Positive = 0.1
    """Standard deviation of the noise of these steps, in actions' units."""
    epsilon: Positive = 0.01
    """Clipping of each step's ratio (a mean over the chunk's numbers)."""
    denoising_discount: Share = 0.99
    """Of steps before the last one."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """How a policy learns; of the algorithms' own tables, only that of `name` counts."""

    name: AlgorithmName = "bc"
    condition_dropout: Share = 0.0
    """Share of the goals to hide from the imitator, for classifier-free guidance."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    awr: AWRConfig = field(default_factory=AWRConfig)
    idql: IDQLConfig = field(default_factory=IDQLConfig)
    fql: FQLConfig = field(default_factory=FQLConfig)
    qc: QCConfig = field(default_factory=QCConfig)
    gtp: GTPConfig = field(default_factory=GTPConfig)
    sdac: SDACConfig = field(default_factory=SDACConfig)
    on_policy: OnPolicyConfig = field(default_factory=OnPolicyConfig)
    fpo: FPOConfig = field(default_factory=FPOConfig)
    dppo: DPPOConfig = field(default_factory=DPPOConfig)
