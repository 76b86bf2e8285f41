"""What every data source gives: labelled uint8 images in three splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, C, H, W] and labels, int64 [N] or, multi-label, float32 {0, 1} [N, K]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """A labelled data set: splits, the names of its K classes, what may be done to its images."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    multi_label: bool = False
    flip: bool = False
    """Whether a mirrored image is as plausible as the original."""

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        return self.train.images.shape[-1]


class Source(ABC):
    """Where images come from. The constructor takes the config's `init_args`."""

    name: ClassVar[str]

    @abstractmethod
    def load(self, path: str | None, size: int | None, seed: int) -> Dataset:
        """Reads, builds or fetches the data set at `size` pixels (None: the source's own size).

        Raises `UserError` for whatever the user can mend: a missing or broken file, a wrong size,
        shape, dtype or key, an empty folder, no network.
        """

    def acquire(self, images: Tensor, client: int, seed: int) -> Tensor:
        """The training `images` [n, C, H, W] as this client's own equipment would have taken them.

        The default changes nothing.
        """
        return images
