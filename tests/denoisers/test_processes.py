"""Data of known mean and spread: what the best network says is known, so samples must fit."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.configuration_utils import FrozenDict
from torch import nn

from lmdiff.denoisers.contract import Condition
from lmdiff.denoisers.processes import FlowMatching, VariancePreserving, make_process
from lmdiff.denoisers.roles import role_masks
from lmdiff.denoisers.trajectory import TrajectoryDenoiser, TrajectoryDraw
from lmdiff.errors import UserError

PROCESSES = [
    ("flow", "sample"),
    ("flow", "velocity"),
    ("vp", "sample"),
    ("vp", "velocity"),
    ("vp", "epsilon"),
]
LEVELS = [0.001, 0.01, 0.02, 0.05, 0.2, 0.5, 0.8, 0.98]

# Windows of two steps: (observation 2, action 1, signal 1). Later observations lie around the first
# one plus MOVE, so a plan needs to see the given one, clean.
SIZES = (2, 1, 1)
MOVE = torch.tensor([1.5, -0.5])
SIGNAL = -0.8
SPREAD = torch.tensor([0.5, 0.5, 1.0, 0.25])


def cosine_alphas():
    """Nichol and Dhariwal's equation 17, with betas of at most 0.999."""

    def alpha(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    alphas, product = [], 1.0
    for k in range(1000):
        product *= 1 - min(1 - alpha((k + 1) / 1000) / alpha(k / 1000), 0.999)
        alphas.append(product)
    return torch.tensor(alphas, dtype=torch.float64)


ALPHAS = cosine_alphas()


def rates(process, level):
    """`xt = a x0 + b noise`."""
    if process == "flow":
        return 1 - level, level
    alpha = torch.cat([torch.ones(1).double(), ALPHAS])[(level * 1000).round().long()]
    return alpha.sqrt().float(), (1 - alpha).sqrt().float()


def beliefs(process, xt, level, mean, spread):
    """What can be known of (x0, noise) from `xt`, and the variance left of x0."""
    a, b = rates(process, level)
    total = (a * spread) ** 2 + b**2
    x0 = mean + spread**2 * a / total * (xt - a * mean)
    return x0, b / total * (xt - a * mean), (spread * b) ** 2 / total


def best_output(process, prediction, xt, level, mean, spread):
    """What a network without any error gives."""
    x0, noise, _ = beliefs(process, xt, level, mean, spread)
    a, b = rates(process, level)
    if process == "vp":
        return {"sample": x0, "epsilon": noise, "velocity": a * noise - b * x0}[prediction]
    if prediction == "sample":
        # Below level 0.02, what is trained is x0 as if from there.
        return xt - level.clamp_min(0.02) * (noise - x0)
    # The rest of the velocity beside its best linear guess for unit variance,
    # cov(v, xt) / var(xt) = (b - a) / (a^2 + b^2), scaled to unit variance.
    power = a**2 + b**2
    return (noise - x0 - (b - a) / power * xt) * power.sqrt()


class BestNetwork(nn.Module):
    """Stands in for the transformer; checks what the denoiser shows it."""

    def __init__(self, process, prediction):
        super().__init__()
        self.config = FrozenDict(process=process, prediction=prediction, goal_size=2)
        self.group_sizes = SIZES
        self.nothing = nn.Parameter(torch.zeros(1))
        self.seen = []

    def read_goal(self, words, mask, state, given):
        assert not given.any()
        return len(state)

    def forward(self, sample, level, goal):
        assert len(sample) == goal
        assert level[:, 0, 0].eq(0).all(), "the first observation is given"
        assert level[:, :, 1].eq(1).all(), "actions are absent"
        assert sample[..., 2].eq(0).all()
        asked = level[:, 1, 0]
        assert level[:, 0, 2].equal(asked)
        assert level[:, 1, 2].equal(asked)
        self.seen.append(float(asked[0]))
        mean = torch.zeros_like(sample)
        mean[..., :2] = sample[:, :1, :2] + MOVE
        mean[..., 3] = SIGNAL
        channel = level.repeat_interleave(torch.tensor(SIZES), -1)
        process, prediction = self.config["process"], self.config["prediction"]
        return best_output(process, prediction, sample, channel, mean, SPREAD)


SAMPLERS = [
    *[("flow", p, FlowMatchEulerDiscreteScheduler, 60) for p in ("sample", "velocity")],
    *[("flow", p, DPMSolverMultistepScheduler, 20) for p in ("sample", "velocity")],
    *[("vp", p, DDIMScheduler, 60) for p in ("sample", "velocity", "epsilon")],
    *[("vp", p, DPMSolverMultistepScheduler, 20) for p in ("sample", "velocity", "epsilon")],
    *[("vp", p, DDPMScheduler, 120) for p in ("sample", "velocity", "epsilon")],
]


@pytest.mark.parametrize(("process", "prediction", "scheduler_class", "steps"), SAMPLERS)
def test_samples_have_the_mean_and_spread_of_the_data(
    process, prediction, scheduler_class, steps, generator
):
    denoiser = TrajectoryDenoiser(BestNetwork(process, prediction))
    scheduler = denoiser.process.scheduler()
    if scheduler_class is not type(scheduler):
        scheduler = scheduler_class.from_config(scheduler.config)
    assert denoiser.process.accepts(scheduler)
    given = torch.randn(4000, 2, 4, generator=generator(0))
    sample = denoiser.sample(
        Condition(), given, "planner", scheduler, steps, generator=generator(1)
    )
    assert torch.equal(sample[:, 0, :2], given[:, 0, :2])
    assert not sample[..., 2].any()
    later = torch.cat([sample[:, 1, :2] - given[:, 0, :2] - MOVE, sample[..., 3] - SIGNAL], 1)
    spread = SPREAD[[0, 1, 3, 3]]
    # Five standard errors, and three percent for the steps.
    torch.testing.assert_close(later.mean(0) / spread, torch.zeros(4), rtol=0, atol=0.08)
    torch.testing.assert_close(later.std(0) / spread, torch.ones(4), rtol=0, atol=0.09)
    assert denoiser.network.seen[0] >= 0.99
    assert denoiser.network.seen == sorted(denoiser.network.seen, reverse=True)
    assert 0 < denoiser.network.seen[-1] <= 0.06


@pytest.mark.parametrize(("process", "prediction"), PROCESSES)
def test_one_step_gives_the_mean(process, prediction, generator):
    denoiser = TrajectoryDenoiser(BestNetwork(process, prediction))
    given = torch.randn(200, 2, 4, generator=generator(0))
    sample = denoiser.sample(
        Condition(), given, "planner", denoiser.process.scheduler(), 1, generator=generator(1)
    )
    # Noise predictions are divided by the square root of the last alpha, 5e-5.
    tolerance = 0.05 if prediction == "epsilon" else 1e-3
    expected = given[:, 0, :2] + MOVE
    torch.testing.assert_close(sample[:, 1, :2], expected, rtol=0, atol=tolerance)
    signal = torch.full((200, 2), SIGNAL)
    torch.testing.assert_close(sample[..., 3], signal, rtol=0, atol=tolerance)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("process", "prediction"), PROCESSES)
def test_identities(process, prediction, level, generator):
    made = make_process(process, prediction)
    x0 = torch.randn(64, 3, generator=generator(0))
    noise = torch.randn(64, 3, generator=generator(1))
    levels = torch.full((64, 3), level)
    a, b = rates(process, levels)
    xt = made.corrupt(x0, noise, levels)
    torch.testing.assert_close(xt, a * x0 + b * noise, rtol=0, atol=1e-5)
    # A network that knew each x0 has no spread left to guess.
    output = best_output(process, prediction, xt, levels, x0, torch.zeros(3))
    found = made.predict(output, xt, levels)
    torch.testing.assert_close(found, made.target(x0, noise, levels), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("process", "prediction"), PROCESSES)
def test_the_best_loss_is_the_variance_left(process, prediction, level, generator):
    denoiser = TrajectoryDenoiser(BestNetwork(process, prediction))
    batch = 10_000
    x0 = torch.randn(batch, 2, 4, generator=generator(0)) * SPREAD
    x0[:, 0, :2] = torch.randn(batch, 2, generator=generator(1))
    x0[:, 1, :2] += x0[:, 0, :2] + MOVE
    x0[..., 3] += SIGNAL
    noise = torch.randn(x0.shape, generator=generator(2))
    draw = TrajectoryDraw(torch.full((batch,), level), noise, role_masks(["planner"] * batch, 2))
    loss = denoiser.loss(x0, Condition(), draw)
    assert loss.shape == (batch,)

    a, b = rates(process, torch.tensor([level]))
    left = beliefs(process, torch.zeros(4), torch.full((4,), level), torch.zeros(4), SPREAD)[2]
    # Given xt, everything is linear in x0: v = xt / t - x0 / t for flow, and so on.
    if process == "flow":
        weight = max(level, 0.02) ** 2 / max(level, 0.05) if prediction == "sample" else 1.0
        left = weight * left / level**2
    else:
        left = left * {"sample": 1.0, "epsilon": (a / b) ** 2, "velocity": 1 / b**2}[prediction]
    # One later observation (the mean of two channels) and two signals, each counting alike.
    expected = (left[:2].mean() + 2 * left[3]) / 3
    assert loss.mean().item() == pytest.approx(float(expected), rel=0.05)


def test_flow_velocity_is_preconditioned_for_unit_variance(generator):
    process = FlowMatching("velocity")
    x0, noise = (torch.randn(50_000, generator=generator(seed)) for seed in (0, 1))
    for level in (0.1, 0.5, 0.9):
        levels = torch.full_like(x0, level)
        xt = process.corrupt(x0, noise, levels)
        # The output that the velocity needs: predict is affine in it.
        rest = process.predict(torch.zeros_like(xt), xt, levels)
        slope = process.predict(torch.ones_like(xt), xt, levels) - rest
        output = (noise - x0 - rest) / slope
        assert output.std().item() == pytest.approx(1, abs=0.02)
        assert (output * xt).mean().item() == pytest.approx(0, abs=0.02)


def test_levels_of_timesteps():
    flow, vp = FlowMatching(), VariancePreserving()
    assert flow.level(torch.tensor(1000.0)) == 1
    assert flow.level(torch.tensor(0.0)) == 0
    assert vp.level(torch.tensor(999)) == 1
    assert vp.level(torch.tensor(0)).item() == pytest.approx(0.001)
    for process, last in ((flow, 1000), (vp, 999)):
        scheduler = process.scheduler()
        scheduler.set_timesteps(7)
        assert scheduler.timesteps[0] == last
        levels = process.level(scheduler.timesteps)
        assert ((levels > 0) & (levels <= 1)).all()


def test_every_timestep_is_corrupted_as_its_scheduler_does(generator):
    process = VariancePreserving()
    x0 = torch.randn(1000, 4, generator=generator(0))
    noise = torch.randn(1000, 4, generator=generator(1))
    timesteps = torch.arange(1000)
    xt = process.corrupt(x0, noise, process.level(timesteps)[:, None])
    expected = process.scheduler().add_noise(x0, noise, timesteps)
    torch.testing.assert_close(xt, expected)
    assert torch.equal(process.corrupt(x0, noise, torch.zeros(1)), x0)


def test_schedulers_of_the_other_process_are_refused():
    flow, vp = FlowMatching(), VariancePreserving()
    cosine = {"beta_schedule": "squaredcos_cap_v2"}
    for scheduler in (
        DDIMScheduler(),
        DDIMScheduler.from_config(vp.scheduler().config),
        DPMSolverMultistepScheduler(prediction_type="epsilon"),
        DPMSolverMultistepScheduler.from_config(vp.scheduler().config),
        # Velocities of a flow along a diffusion's noise levels.
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", **cosine),
        EulerDiscreteScheduler(),
    ):
        assert not flow.accepts(scheduler)
    for scheduler in (
        FlowMatchEulerDiscreteScheduler(),
        flow.scheduler(),
        DPMSolverMultistepScheduler.from_config(flow.scheduler().config),
        EulerDiscreteScheduler(prediction_type="sample"),
        DDIMScheduler(prediction_type="epsilon", **cosine),
        DDIMScheduler(prediction_type="sample", beta_schedule="linear"),
    ):
        assert not vp.accepts(scheduler)
    assert flow.accepts(flow.scheduler())
    for prediction in ("sample", "velocity", "epsilon"):
        own = VariancePreserving(prediction)
        assert own.accepts(own.scheduler())
        assert vp.accepts(own.scheduler()) == (prediction == "sample")


def test_flow_has_no_epsilon():
    with pytest.raises(UserError, match=r"--denoiser\.process vp"):
        make_process("flow", "epsilon")
    with pytest.raises(UserError, match="vp"):
        TrajectoryDenoiser(BestNetwork("flow", "epsilon"))
