"""Starting from a trained policy: its weights, by name, into a module that is to learn on."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from lmdiff.errors import UserError
from lmdiff.evaluation.agents import load_policy
from lmdiff.training.checkpoints import latest_checkpoint
from lmdiff.training.policy.module import PolicyModule


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """Weights of a saved policy, under the names that a `PolicyModule` has for them.

    A saved agent holds what acts. Where it lies in its run's folder, the run's last checkpoint also
    has what only learns: value functions, targets, FQL's flow.

    Raises:
        UserError: a file is missing or damaged.
    """
    pipe = load_policy(folder).to("cpu")
    parts = {
        "normalizer": pipe.normalizer,
        "goal_encoder": pipe.goal_encoder,
        "algorithm.actor.network": pipe.network,
    }
    if pipe.critic is not None:
        parts["algorithm.critic"] = pipe.critic
    acting = {
        f"{prefix}.{name}": tensor
        for prefix, part in parts.items()
        for name, tensor in part.state_dict().items()
    }
    checkpoint = latest_checkpoint(folder.parent) if folder.name == "agent" else None
    if checkpoint is None:
        return acting
    return {**checkpoint.tensors["module"], **checkpoint.tensors["ema"], **acting}


@torch.no_grad()
def start_from(module: PolicyModule, weights: dict[str, Tensor], folder: Path) -> None:
    """Copy the weights that the module has, too; the rest of it stays fresh.

    Raises:
        UserError: the policy is another network, or sees another world.
    """
    # How much was lived through is no weight: counting begins anew.
    own = {name: t for name, t in module.state_dict().items() if name != "environment_steps"}
    # A trained critic's target is the critic, unless the target itself was kept.
    for name in [name for name in own if name.startswith("algorithm.target.")]:
        source = name.removeprefix("algorithm.target.").replace("/", ".")
        if name not in weights and f"algorithm.critic.{source}" in weights:
            weights[name] = weights[f"algorithm.critic.{source}"]
    fitting = {n for n, t in own.items() if n in weights and weights[n].shape == t.shape}
    needed = ("algorithm.actor.", "normalizer.")
    wrong = [name for name in own if name.startswith(needed) and name not in fitting]
    if wrong:
        raise UserError(
            f"The policy in {folder} is another one than this agent's: {wrong[0]} does not fit. "
            "Take the world, chunks.history, chunks.horizon and algorithm.network of the agent "
            "that it was trained as."
        )
    module.load_state_dict({**module.state_dict(), **{name: weights[name] for name in fitting}})
    fresh = sorted({".".join(name.split(".")[:2]) for name in own if name not in fitting})
    if fresh:
        warnings.warn(f"Not in {folder}, so they start fresh: {', '.join(fresh)}.", stacklevel=2)
