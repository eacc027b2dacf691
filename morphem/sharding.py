"""Fully sharded training: every process keeps a share of all weights, gradients, teachers and optimizer state.

A method is one unit: all its weights are gathered when a step begins, all its gradients are summed and cut into shares
when the step's backward pass ends. Whatever happens in between may differ between processes, such as into how many
groups of equal channel counts a batch falls. Units for single layers would save more memory, but need every process to
call every layer equally often.

Source: `fully_shard` of torch.distributed.fsdp, https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


def shard(module: nn.Module, mesh: "dist.device_mesh.DeviceMesh", calls: Sequence[str]) -> None:
    """Cut the weights of a module into shares, one per process, as one unit; nothing where that was done before.

    Args:
        module: Its parameters become distributed tensors in place. Its class changes: `isinstance` and what it can do
            stay the same.
        mesh: The processes, in two axes: where both are longer than 1, weights are cut over the second (the devices of
            a machine) and copied over the first (machines).
        calls: Names of the methods in which the whole weights are needed.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if isinstance(module, FSDPModule):
        return
    names = mesh.mesh_dim_names or ()
    longer = tuple(name for name in names if mesh[name].size() > 1)
    fully_shard(module, mesh=mesh[longer or names[-1]], reshard_after_forward=False)
    for name in calls:
        register_fsdp_forward_method(module, name)


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Gather the weights of a sharded module for a while; other modules are left as they are.

    All processes have to enter this together. What is read inside, features or a `state_dict` of a part, is as on one
    device; nothing may be trained inside.

    Args:
        module: As `shard` left it, or any other.
    """
    if not is_sharded(module):
        yield
        return
    _reshard(module)
    shares = [(part, name, value) for part in module.modules() for name, value in part._parameters.items()]
    gathered: dict[int, nn.Parameter] = {}
    for part, name, value in shares:  # not `unshard`: a state_dict would cut the weights into shares again
        if value is not None:
            if id(value) not in gathered:
                gathered[id(value)] = nn.Parameter(_gather(value), requires_grad=False)
            part._parameters[name] = gathered[id(value)]
    try:
        yield
    finally:
        for part, name, value in shares:
            part._parameters[name] = value


def _reshard(module: nn.Module) -> None:
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(module, FSDPModule)
    module.reshard()


def _gather(parameter: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    data = parameter.detach()
    return data.full_tensor() if isinstance(data, DTensor) else data


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was called on a module."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def local(tensor: Tensor) -> Tensor:
    """Return this process's share of a distributed tensor, sharing its memory; any other tensor as it is.

    Args:
        tensor: A parameter, gradient or buffer.
    """
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of each of some tensors, over all their shares, (number of tensors,).

    Args:
        tensors: At least one; all distributed in one way, or none.
    """
    from torch.distributed.tensor import DTensor

    found = torch.stack(torch._foreach_norm([local(tensor) for tensor in tensors]))
    first = tensors[0]
    if isinstance(first, DTensor):
        squares = found.square()
        for axis, placement in enumerate(first.placements):
            if placement.is_shard():
                dist.all_reduce(squares, group=first.device_mesh.get_group(axis))
        found = squares.sqrt()
    return found
