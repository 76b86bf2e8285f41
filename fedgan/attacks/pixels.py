"""Arithmetic on bytes, which attacks on whole images share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

A = TypeVar("A")

CHUNK = 128
"""Images changed at a time; bounds the memory."""


def on_bytes(change: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`change`, which takes and gives float32 levels [n, C, H, W], done to uint8 images of that
    shape: rounded, halves to even, and clipped to [0, 255]; a copy.

    >>> on_bytes(lambda x: 2 * x + 0.5, torch.tensor([[[[4, 5, 200]]]], dtype=torch.uint8)).tolist()
    [[[[8, 10, 255]]]]
    """
    changed = torch.empty_like(images)
    for before, after in zip(images.split(CHUNK), changed.split(CHUNK), strict=True):
        after.copy_(change(before.float()).round_().clamp_(0, 255))
    return changed


def blend(images: Tensor, pattern: Tensor, opacity: float) -> Tensor:
    """(1 - opacity) x + opacity * pattern, of levels.

    In three operations that round one by one, unlike `torch.lerp`, which may fuse them in some
    places of a tensor and not in others: an image alone gets the bytes that it gets in a batch.
    """
    return images * (1 - opacity) + pattern * opacity


def others(attack: A, count: int, rng: torch.Generator) -> list[A]:
    """Copies of an attack, each with another `fixed_seed` in place of the one that its pattern is
    drawn from."""
    copies = [copy.copy(attack) for _ in range(count)]
    for one, seed in zip(copies, torch.randint(2**40, (count,), generator=rng), strict=True):
        one.fixed_seed = int(seed)  # type: ignore[attr-defined]
    return copies
