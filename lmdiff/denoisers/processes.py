"""Noise processes: how data is corrupted, and what the network predicts.

The noise *level* is 0 for clean data and 1 for noise. Sampling goes through diffusers schedulers
(FlowMatchEuler for flow matching; DDIM, DPM-Solver++ and their kin for VP), whose timesteps a
process turns into levels.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from lmdiff.errors import UserError

TRAIN_TIMESTEPS = 1000


# The velocity of an almost clean sample is its tiny error over a tiny time: bounded from below.
_MIN_LEVEL = 0.02
_FULL_WEIGHT = 0.05  # level below which the weight grows no further
# Sampling steps more densely where little noise is left (Esser et al., arXiv:2403.03206, with a
# shift above 1, do the opposite for large images).
_SHIFT = 0.3


@dataclass(frozen=True)
class FlowMatching:
    """Straight paths `xt = (1 - t) x0 + t noise` and their velocity `noise - x0`.

    Lipman et al., arXiv:2210.02747; rectified flow, Liu et al., arXiv:2209.03003. The network may
    give the clean `sample`, which a small one learns several times faster for plans (it need not
    copy noise), or the `velocity`, as the rest of its best linear guess from `xt`
    (preconditioning for unit variance: Karras et al., arXiv:2206.00364).
    """

    prediction: str = "sample"

    def corrupt(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """`xt`; `level` broadcasts against `x0`."""
        return torch.lerp(x0, noise, level)

    def target(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The velocity, which the sampler follows."""
        del level
        return noise - x0

    def predict(self, output: Tensor, xt: Tensor, level: Tensor) -> Tensor:
        """The velocity, from the network's output."""
        if self.prediction == "sample":
            return (xt - output) / level.clamp_min(_MIN_LEVEL)
        power = level**2 + (1 - level) ** 2
        return (2 * level - 1) / power * xt + output * power.rsqrt()

    def move(self, prediction: Tensor, xt: Tensor, level: Tensor, to: Tensor) -> Tensor:
        """One Euler step from `level` to `to`, as the default scheduler takes it."""
        return xt + (to - level) * prediction

    def weight(self, level: Tensor) -> Tensor | float:
        """Weight of the velocity's squared error: for `sample`, the sample's over the level.

        Without "over the level", small noise hardly counts: a network may then add more error to an
        almost clean plan than there was noise in it.
        """
        if self.prediction != "sample":
            return 1.0
        return level.clamp_min(_MIN_LEVEL) ** 2 / level.clamp_min(_FULL_WEIGHT)

    def scheduler(self) -> Any:
        """The default sampler.

        Its config also says `flow_prediction`, so that
        `DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)` samples the same flow.
        """
        scheduler = FlowMatchEulerDiscreteScheduler(TRAIN_TIMESTEPS, shift=_SHIFT)
        scheduler.register_to_config(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            final_sigmas_type="zero",
        )
        return scheduler

    def set_timesteps(self, scheduler: Any, steps: int, device: torch.device) -> None:
        """Prepare a scheduler. Euler's own levels end at almost zero, which wastes a step."""
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            levels = torch.linspace(1.0, 1.0 / steps, steps).tolist()
            scheduler.set_timesteps(sigmas=levels, device=device)
        else:
            scheduler.set_timesteps(steps, device=device)

    def accepts(self, scheduler: Any) -> bool:
        """Whether a scheduler samples this process."""
        return (
            isinstance(scheduler, FlowMatchEulerDiscreteScheduler | DPMSolverMultistepScheduler)
            and scheduler.config.get("prediction_type") == "flow_prediction"
            and bool(scheduler.config.get("use_flow_sigmas"))
        )

    def level(self, timestep: Tensor) -> Tensor:
        """Level of a scheduler's timestep."""
        return timestep / TRAIN_TIMESTEPS


@dataclass(frozen=True)
class VariancePreserving:
    """`xt = sqrt(a_t) x0 + sqrt(1 - a_t) noise` with the squared-cosine schedule.

    Ho et al., arXiv:2006.11239; Nichol and Dhariwal, arXiv:2102.09672; v: arXiv:2202.00512.
    """

    prediction: str = "sample"

    def _alpha(self, level: Tensor) -> Tensor:
        alphas = _alphas_cumprod().to(level.device)
        # Levels (0, 1] fall onto timesteps 0..999; level 0 is clean data.
        # In float32, (k + 1) / 1000 * 1000 may come out above k + 1.
        index = (level * TRAIN_TIMESTEPS - 1e-3).ceil().long() - 1
        return torch.where(index < 0, 1.0, alphas[index.clamp_min(0)])

    def corrupt(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """`xt`; `level` broadcasts against `x0`."""
        alpha = self._alpha(level)
        return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise

    def target(self, x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the network should predict: the clean sample, the noise, or v."""
        if self.prediction == "sample":
            return x0
        if self.prediction == "epsilon":
            return noise
        alpha = self._alpha(level)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * x0

    def predict(self, output: Tensor, xt: Tensor, level: Tensor) -> Tensor:
        """The network's output as it is: these schedulers know all three."""
        del xt, level
        return output

    def move(self, prediction: Tensor, xt: Tensor, level: Tensor, to: Tensor) -> Tensor:
        """One DDIM step from `level` to `to`, as the default scheduler takes it (eta 0)."""
        alpha = self._alpha(level)
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        if self.prediction == "sample":
            x0, noise = prediction, (xt - signal * prediction) / spread
        elif self.prediction == "epsilon":
            x0, noise = (xt - spread * prediction) / signal, prediction
        else:
            x0, noise = signal * xt - spread * prediction, signal * prediction + spread * xt
        after = self._alpha(to)
        return after.sqrt() * x0 + (1 - after).sqrt() * noise

    def weight(self, level: Tensor) -> Tensor | float:
        """Weight of the squared error."""
        del level
        return 1.0

    def scheduler(self) -> Any:
        """The default sampler."""
        kind = "v_prediction" if self.prediction == "velocity" else self.prediction
        return DDIMScheduler(
            num_train_timesteps=TRAIN_TIMESTEPS,
            beta_schedule="squaredcos_cap_v2",
            prediction_type=cast(Literal["epsilon", "sample", "v_prediction"], kind),
            # Normalised data exceeds one; clipping is for images.
            clip_sample=False,
            timestep_spacing="trailing",
        )

    def set_timesteps(self, scheduler: Any, steps: int, device: torch.device) -> None:
        """Prepare a scheduler."""
        scheduler.set_timesteps(steps, device=device)

    def accepts(self, scheduler: Any) -> bool:
        """Whether a scheduler samples this process."""
        return (
            isinstance(scheduler, DDIMScheduler | DDPMScheduler | DPMSolverMultistepScheduler)
            and scheduler.config.get("prediction_type") == self.scheduler().config.prediction_type
            and scheduler.config.get("beta_schedule") == "squaredcos_cap_v2"
        )

    def level(self, timestep: Tensor) -> Tensor:
        """Level of a scheduler's timestep."""
        return (timestep + 1) / TRAIN_TIMESTEPS


@cache
def _alphas_cumprod() -> Tensor:
    return VariancePreserving().scheduler().alphas_cumprod


Process = FlowMatching | VariancePreserving


def make_process(name: str, prediction: str) -> Process:
    """`flow` or `vp`; the network predicts `sample`, `velocity`, or (VP) `epsilon`.

    Raises:
        UserError: a combination that does not exist.
    """
    if name == "flow":
        if prediction == "epsilon":
            raise UserError(
                "denoiser.process = 'flow' predicts 'sample' or 'velocity'; for 'epsilon' set "
                "--denoiser.process vp."
            )
        return FlowMatching(prediction)
    return VariancePreserving(prediction)
