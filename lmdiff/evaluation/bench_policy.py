"""`lmdiff bench policy-step` and `policy-action`: times of learning and of acting, on one thread.

A training step is loss, backward, Adam and targets, on a batch that lies in memory; an action is
a call of the pipeline as a control loop makes it: a raw observation goes in, a chunk comes out, and
the goal was encoded, and read, before. CPU time is shown beside wall time, as it is the
same on a busy machine. Peer: the formulas of Diffusion-QL (Wang et al., arXiv:2208.06193) in
networks of the same width, with its five denoising steps through which the critic's gradient goes.
Ours multiply in fp32 as in training (training/precision.py); the peer is timed with torch's own
products, and once more with those.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmdiff.algos.config import AlgorithmConfig, CriticConfig, NetworkConfig, QCConfig
from lmdiff.algos.critics import Target
from lmdiff.algos.policies import Algorithm, Sizes, make_algorithm
from lmdiff.algos.transitions import Transitions
from lmdiff.data.normalizer import Normalizer
from lmdiff.denoisers.situation import Situation, with_nothing
from lmdiff.evaluation.bench_text import Table, in_turn, quartiles
from lmdiff.goals.encoder import GoalTokens
from lmdiff.pipelines.policy_pipeline import PolicyPipeline
from lmdiff.training.precision import fast_fp32

COLUMNS = {
    "method": "method",
    "width": "width",
    "evaluations": "network evaluations",
    "cpu": "CPU time",
    "wall": "time",
    "ratio": "against the peer",
}
_PEER = "Diffusion-QL, 5 steps (peer's formulas)"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scale:
    """Networks and a batch: four layers of 512 as in FQL, on a robot arm's sizes."""

    width: int = 512
    layers: int = 4
    batch: int = 256
    sizes: Sizes = field(
        default_factory=lambda: Sizes(observation=40, action=5, horizon=1, words=384)
    )

    def algorithm(self, name: str, **more: Any) -> Algorithm:
        """With weights of seed 0. A denoiser has as many layers as the critics."""
        torch.manual_seed(0)
        network = NetworkConfig(width=self.width, layers=(self.layers + 2) // 2)
        critic = CriticConfig(width=self.width, layers=self.layers)
        config = AlgorithmConfig(name=name, network=network, critic=critic, **more)  # pyright: ignore
        return make_algorithm(config, self.sizes)

    def situations(self, batch: int) -> Situation:
        """Random ones under four goals of twelve tokens."""
        words = GoalTokens(torch.randn(4, 12, self.sizes.words), torch.ones(4, 12) > 0)
        goal = torch.arange(batch) % 4
        return Situation(torch.randn(batch, self.sizes.observation), with_nothing(words), goal)

    def transitions(self) -> Transitions:
        """A random batch."""
        now, count = self.situations(self.batch), self.batch
        action = torch.rand(count, self.sizes.horizon, self.sizes.action) * 2 - 1
        return Transitions(
            now,
            action,
            torch.ones(action.shape[:2]) > 0,
            -torch.ones(count),
            torch.full((count,), 0.99),
            now._replace(observation=torch.randn_like(now.observation)),
        )


def policy_step(repeats: int, scale: Scale | None = None) -> Table:
    """A training step of every algorithm, at the peer's own width (3 layers of 256) and at ours."""
    rows = []
    for size in (scale,) if scale else (Scale(width=256, layers=3), Scale()):
        runs = {
            _PEER: _peer_step(size),
            _PEER + ", our products": _with_our_products(_peer_step(size)),
            "bc": _step(size, size.algorithm("bc")),
            "awr": _step(size, size.algorithm("awr")),
            "idql": _step(size, size.algorithm("idql")),
            "fql": _step(size, size.algorithm("fql")),
            "qc, 4 candidates in targets": _step(
                size, size.algorithm("qc", qc=QCConfig(target_candidates=4))
            ),
            "gtp": _step(size, size.algorithm("gtp")),
        }
        rows += _rows(runs, repeats, size.width)
    columns = {key: text for key, text in COLUMNS.items() if key != "evaluations"}
    shape = (scale or Scale()).sizes
    title = (
        f"A training step, batch {(scale or Scale()).batch}, observation {shape.observation}, "
        f"action {shape.action} x {shape.horizon}, one thread"
    )
    return title, columns, rows


def policy_action(repeats: int, scale: Scale | None = None) -> Table:
    """One chunk for one situation, by the number of network evaluations."""
    size = scale or Scale()
    goal = size.situations(1)._replace(readings={})  # as `encode_goal` gives it
    observation = np.zeros((1, size.sizes.observation), np.float32)
    pipes = {name: _pipeline(size, name) for name in ("bc", "gtp", "fql")}
    ways = [("flow", "bc", steps) for steps in (10, 5, 2, 1)]
    ways += [("flow map", "gtp", steps) for steps in (4, 2, 1)]
    ways += [("one-step student", "fql", 1)]

    def act(name: str, steps: int) -> Callable[[], object]:
        return lambda: pipes[name](goal, observation=observation, num_inference_steps=steps)

    runs = {(shown, steps): act(name, steps) for shown, name, steps in ways}
    rows = _rows(runs, repeats, size.width)
    for row in rows:
        row["method"], row["evaluations"] = row["method"]
    title = f"One action chunk, batch 1, observation {size.sizes.observation}, one thread"
    return title, COLUMNS | {"ratio": "against 10 steps of the flow"}, rows


def _pipeline(size: Scale, name: str) -> PolicyPipeline:
    """An untrained policy. Its goals come encoded, so it has no language model."""
    actor, sizes = size.algorithm(name).actor, size.sizes
    normalizer = Normalizer([0.0] * sizes.observation, [1.0] * sizes.observation)
    nobody: Any = None
    return PolicyPipeline(actor.network, normalizer, nobody, actor.scheduler())


def _rows(runs: dict[Any, Callable[[], object]], repeats: int, width: int) -> list[dict[str, Any]]:
    timed = in_turn(list(runs.values()), repeats)
    first = timed[0].cpu
    return [
        {
            "method": method,
            "width": width,
            "cpu": quartiles([1000 * second for second in seconds.cpu], "ms"),
            "wall": quartiles([1000 * second for second in seconds.wall], "ms"),
            "ratio": quartiles([b / a for a, b in zip(first, seconds.cpu, strict=True)], "x"),
        }
        for method, seconds in zip(runs, timed, strict=True)
    ]


def _step(size: Scale, algorithm: Algorithm) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(algorithm.parameters(), 3e-4, fused=True)
    batch, generator = size.transitions(), torch.Generator().manual_seed(0)

    def step() -> None:
        algorithm(batch, generator)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        algorithm.after_step()

    return _with_our_products(step)


def _with_our_products(step: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        with fast_fp32(_CPU):
            step()

    return run


def _peer_step(size: Scale, steps: int = 5) -> Callable[[], object]:
    """Diffusion-QL as published: two optimizers, Mish MLPs, an average of the actor."""
    sizes, width = size.sizes, size.width
    torch.manual_seed(0)

    def mlp(inputs: int, outputs: int) -> nn.Sequential:
        parts: list[nn.Module] = [nn.Linear(inputs, width), nn.Mish()]
        for _ in range(size.layers - 1):
            parts += [nn.Linear(width, width), nn.Mish()]
        return nn.Sequential(*parts, nn.Linear(width, outputs))

    actor = mlp(sizes.observation + sizes.action + 16, sizes.action)
    critics = nn.ModuleList(mlp(sizes.observation + sizes.action, 1) for _ in range(2))
    average, targets = Target(actor), [Target(critic) for critic in critics]
    optimizers = [torch.optim.Adam(part.parameters(), 3e-4) for part in (actor, critics)]
    batch = size.transitions()
    now, after, x = batch.now.observation, batch.next.observation, batch.action.flatten(1)
    alphas = torch.linspace(0.99, 0.01, steps)
    times = torch.randn(steps, 16)

    def denoise(network: Callable[..., Tensor], observation: Tensor) -> Tensor:
        sample = torch.randn_like(x)
        for i in reversed(range(steps)):
            time = times[i].expand(len(x), -1)
            noise = network(torch.cat([sample, time, observation], 1))
            clean = (sample - (1 - alphas[i]).sqrt() * noise) / alphas[i].sqrt()
            earlier = alphas[i - 1] if i else torch.ones(())
            sample = earlier.sqrt() * clean.clamp(-1, 1)
            sample = sample + (1 - earlier).sqrt() * torch.randn_like(x)
        return sample.clamp(-1, 1)

    def step() -> None:
        with torch.no_grad():
            following = torch.cat([after, denoise(average, after)], 1)
            value = torch.minimum(*(target(following) for target in targets))[:, 0]
            wanted = batch.reward + batch.discount * value
        recorded = torch.cat([now, x], 1)
        loss = sum(((critic(recorded)[:, 0] - wanted) ** 2).mean() for critic in critics)
        _update(optimizers[1], critics, torch.as_tensor(loss))
        index = torch.randint(0, steps, (len(x),))
        alpha, noise = alphas[index, None], torch.randn_like(x)
        xt = alpha.sqrt() * x + (1 - alpha).sqrt() * noise
        imitation = ((actor(torch.cat([xt, times[index], now], 1)) - noise) ** 2).mean()
        acted = torch.cat([now, denoise(actor, now)], 1)
        first, second = (critic(acted) for critic in critics)
        _update(optimizers[0], actor, imitation - first.mean() / second.abs().mean().detach())
        average.follow(0.005)
        for target in targets:
            target.follow(0.005)

    return step


def _update(optimizer: torch.optim.Optimizer, module: nn.Module, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
