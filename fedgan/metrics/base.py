"""What every encoder gives: the features that distances are taken on, and logits for IS."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class Encoder(ABC):
    """Turns uint8 images into features. The constructor takes the config's `init_args`."""

    name: ClassVar[str]
    """Short name, and the suffix of every figure taken with it: fd_domain, kd_domain, is_domain."""

    @abstractmethod
    def prepare(self, train: Tensor, labels: Tensor, classes: int, seed: int) -> None:
        """Makes the encoder ready before any training starts: loads weights or fits a network.

        `train` is the real train split, uint8 [N, C, H, W], `labels` int64 [N] or float [N, K];
        `classes` is K. Raises `UserError` where the weights are not to be had.
        """

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Moves the network to the device that images will be on."""

    @abstractmethod
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [n, F] and logits [n, L], float32, of uint8 images [n, C, H, W] of any size."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the features would: the key under which real features are cached."""
