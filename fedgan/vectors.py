"""Networks as one vector of shared parameters, and back."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def shared_tensors(*networks: nn.Module) -> list[Tensor]:
    """What the server averages of these networks: parameters and floating-point buffers, in order.

    Buffers (BatchNorm's running statistics, say) are averaged like parameters, so that the global
    generator can be evaluated; integer buffers (BatchNorm's counter) stay with the client.
    """
    return [
        tensor
        for network in networks
        for tensor in network.state_dict(keep_vars=True).values()
        if tensor.is_floating_point()
    ]


def flatten(*networks: nn.Module) -> Tensor:
    """The shared tensors of `networks` as one vector [P], a copy.

    >>> flatten(nn.Linear(2, 3), nn.Linear(1, 1)).shape
    torch.Size([11])
    """
    return torch.cat([tensor.detach().reshape(-1) for tensor in shared_tensors(*networks)])


@torch.no_grad()
def unflatten(vector: Tensor, *networks: nn.Module) -> None:
    """Copies a vector [P] made by `flatten` into `networks`, in place."""
    position = 0
    for tensor in shared_tensors(*networks):
        tensor.copy_(vector[position : position + tensor.numel()].view_as(tensor))
        position += tensor.numel()
    if position != vector.numel():
        raise ValueError(f"the vector has {vector.numel()} elements, the networks {position}")


def sha256(vector: Tensor) -> bytes:
    """Hash of a vector's bytes, wherever it lies."""
    return hashlib.sha256(vector.cpu().contiguous().numpy().tobytes()).digest()
