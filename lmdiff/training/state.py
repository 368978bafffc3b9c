"""What a checkpoint holds: counters; module, EMA and optimizer as named tensors.

Only what training changes is kept: parameters that require a gradient, and persistent buffers.
Frozen weights (a language model) are rebuilt by the caller; a fingerprint tells if they differ.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from lmdiff.errors import UserError
from lmdiff.training.checkpoints import Checkpoint
from lmdiff.training.sharding import part_of, whole

Tensors = dict[str, Tensor]


@dataclass
class Progress:
    """Counters that a checkpoint keeps: steps = updates of the weights + skipped."""

    step: int = 0
    updates: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that is trained, in a fixed order."""
    return {_plain(name): p for name, p in module.named_parameters() if p.requires_grad}


def capture(
    module: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer
) -> dict[str, Tensors]:
    """The groups 'module', 'ema' and 'optimizer' for `save_checkpoint`; on all ranks alike.

    References and no copies, but for what is sharded: that is gathered.
    """
    parameters = trainable_parameters(module)
    names: dict[Tensor, str] = {parameter: name for name, parameter in parameters.items()}
    slots = {
        f"{slot}/{names[parameter]}": value
        for parameter, values in optimizer.state.items()
        for slot, value in values.items()
    }
    groups: dict[str, Tensors] = {
        "module": {**parameters, **_buffers(module)},
        "ema": dict(zip(parameters, ema.shadow_params, strict=True)),
        "optimizer": slots,
    }
    return {
        group: {name: whole(value) for name, value in tensors.items()}
        for group, tensors in groups.items()
    }


@torch.no_grad()
def follow(ema: EMAModel, parameters: list[nn.Parameter], decay: float) -> None:
    """Take an update of the weights into their average; with `decay` 0 it is the weights, exactly.

    EMAModel's own arithmetic gives them up to rounding only.
    """
    if decay > 0:
        ema.step(parameters)
    elif ema.foreach:
        torch._foreach_copy_(ema.shadow_params, [*parameters])
    else:
        for shadow, parameter in zip(ema.shadow_params, parameters, strict=True):
            shadow.copy_(parameter)


@torch.no_grad()
def restore(
    checkpoint: Checkpoint, module: nn.Module, ema: EMAModel, optimizer: torch.optim.Optimizer
) -> None:
    """Put back, bit by bit, what `capture` saw.

    Raises:
        UserError: the checkpoint is of another network; names the tensor.
    """
    parameters = trainable_parameters(module)
    _copy(checkpoint, "module", {**parameters, **_buffers(module)})
    _copy(checkpoint, "ema", dict(zip(parameters, ema.shadow_params, strict=True)))
    state = optimizer.state_dict()
    index = _optimizer_indices(optimizer, parameters)
    values: dict[int, Tensors] = {}
    for key, value in checkpoint.tensors["optimizer"].items():
        slot, _, name = key.partition("/")
        if name not in index:
            raise UserError(f"{checkpoint.path} is of another network: it has {name!r}.")
        values.setdefault(index[name], {})[slot] = part_of(value, parameters[name])
    # load_state_dict knows which slots stay on the CPU and which follow the parameter's device.
    optimizer.load_state_dict({**state, "state": values})


@contextmanager
def averaged(module: nn.Module, ema: EMAModel) -> Iterator[None]:
    """While entered, the module has its EMA weights and is in eval mode."""
    parameters = list(trainable_parameters(module).values())
    modes = [(part, part.training) for part in module.modules()]
    ema.store(parameters)
    try:
        ema.copy_to(parameters)
        module.eval()
        yield
    finally:
        ema.restore(parameters)
        for part, training in modes:
            part.training = training


def frozen_fingerprint(module: nn.Module) -> str:
    """A hash over names, shapes and some values of the weights that are not trained.

    It reads 64 values of each tensor: enough to tell one language model from another, at no cost.
    """
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            some = parameter.detach().flatten()[:64].float().cpu().numpy().tobytes()
            digest.update(f"{_plain(name)} {tuple(parameter.shape)}".encode())
            digest.update(some)
    return digest.hexdigest()


def _copy(checkpoint: Checkpoint, group: str, targets: Mapping[str, Tensor]) -> None:
    saved = checkpoint.tensors.get(group, {})
    for name in sorted(saved.keys() ^ targets.keys()):
        where = "lacks" if name in targets else "also has"
        raise UserError(f"{checkpoint.path} is of another network: it {where} {name!r}.")
    for name, target in targets.items():
        value = saved[name]
        if value.shape != target.shape or value.dtype != target.dtype:
            raise UserError(
                f"{checkpoint.path} is of another network: {name!r} is {tuple(value.shape)} "
                f"{value.dtype} there, {tuple(target.shape)} {target.dtype} here."
            )
        target.copy_(part_of(value, target))


def _buffers(module: nn.Module) -> Tensors:
    persistent = {_plain(name) for name in module.state_dict()}
    named = {_plain(name): buffer for name, buffer in module.named_buffers()}
    return {name: buffer for name, buffer in named.items() if name in persistent}


def _optimizer_indices(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, int]:
    """Name -> the number that the optimizer's state_dict gives the parameter."""
    names = {parameter: name for name, parameter in parameters.items()}
    in_order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {names[parameter]: number for number, parameter in enumerate(in_order)}


def _plain(name: str) -> str:
    """A compiled submodule prefixes its names; a checkpoint is the same with and without."""
    return name.replace("_orig_mod.", "")
