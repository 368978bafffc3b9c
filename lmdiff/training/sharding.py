"""Weights of which each process keeps a part: torch's FSDP2, for models too large for one device.

Each block of a model (a member of a ModuleList) is gathered for its own forward and backward pass
and given up again; so is what lies outside of blocks. Checkpoints hold whole weights: a run may go
on with other processes, sharded or not.
"""

from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, accelerator: Accelerator) -> None:
    """Leave each process its part of every weight, on its device; in place, on all ranks alike.

    From then on only `module` itself may be called, by all ranks as often. Parameters are new
    objects, so optimizers are made after.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost members of ModuleLists that have parameters: a transformer's layers."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            found += [block for block in child if any(True for _ in block.parameters())]
        else:
            found += blocks(child)
    return found


def whole(value: Tensor) -> Tensor:
    """A tensor with all its parts, on every rank; itself if it has none. All ranks must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor that every rank has, shared out as `like` is."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """Name -> whole weight of all that is trained, on the CPU. All ranks must ask."""
    return {
        name: cast(Tensor, whole(parameter.detach())).cpu()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
