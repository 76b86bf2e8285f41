"""A .npz file in MedMNIST layout: one's own images, with every fault of the file told in one line.

The layout: {train,val,test}_images, uint8 [N, H, H] or [N, H, H, C] with C 1 or 3, and
{train,val,test}_labels, integers [N] or [N, 1], or, multi-label, {0, 1} [N, K].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgan.data.base import Dataset, Source, Split
from fedgan.data.store import UNREADABLE
from fedgan.errors import UserError

SPLITS = ("train", "val", "test")
LAYOUT = ", ".join(f"{split}_images, {split}_labels" for split in SPLITS)

Pairs = dict[str, tuple[NDArray[Any], NDArray[Any]]]


class NPZ(Source):
    """Images and labels from a .npz file in MedMNIST layout.

    Args:
        resize: bring images to `data.size` (antialiased); else another size is refused, for no
            image is resized behind the user's back.
        class_names: names of the K classes; null numbers them.
        flip: whether a mirrored image is as plausible as the original.

    Example:
        >>> data = NPZ(flip=True).load("pneumonia.npz", None, seed=1)  # doctest: +SKIP
    """

    name = "npz"

    def __init__(
        self, resize: bool = False, class_names: list[str] | None = None, flip: bool = False
    ) -> None:
        self.resize = resize
        self.class_names = class_names
        self.flip = flip

    def load(self, path: str | None, size: int | None, seed: int) -> Dataset:
        if path is None:
            raise UserError("data.path: missing; npz needs a .npz file in MedMNIST layout")
        if size is not None and size < 1:
            raise UserError(f"data.size: {size}; allowed: 1 or more")
        file = Path(path).expanduser()
        pairs = read(file)
        multi_label = pairs["train"][1].ndim == 2
        classes = self._classes(file, pairs, multi_label)
        found = pairs["train"][0].shape[1]
        if size is not None and size != found and not self.resize:
            raise UserError(
                f"data.size: {size}, but the images in {file} have {found} pixels; "
                f"allowed: {found}, or data.init_args.resize: true"
            )
        train, val, test = (to_split(*pairs[split], size or found) for split in SPLITS)
        return Dataset(file.stem, train, val, test, classes, multi_label, self.flip)

    def _classes(self, file: Path, pairs: Pairs, multi_label: bool) -> tuple[str, ...]:
        """Names of the K classes, after a check that train holds an image of each."""
        labels = pairs["train"][1]
        if multi_label:
            count = labels.shape[1]
            empty = np.flatnonzero(~labels.any(axis=0))
        else:
            held = np.unique(labels)
            count = len(held)
            empty = np.flatnonzero(held != np.arange(count))  # the first gap, if there is one
        if len(empty):
            raise UserError(
                f"{file}: train_labels has no image of class {empty[0]}; "
                "allowed: classes numbered from 0 without gaps"
            )
        if self.class_names is None:
            return tuple(f"class {k}" for k in range(count))
        if len(self.class_names) != count:
            raise UserError(
                f"data.init_args.class_names: {len(self.class_names)} names; "
                f"{file} has {count} classes"
            )
        return tuple(self.class_names)


def read(file: Path) -> Pairs:
    """Images [N, H, H] or [N, H, H, C] and labels, [N] or multi-label [N, K], of each split.

    Raises `UserError` for the first fault found in `file`: see the module's docstring for what is
    allowed, and further: no empty split, at least two classes, val and test with train's alone.
    """
    pairs: Pairs = {}
    for split, (images, labels) in _arrays(file).items():
        check_images(f"{file}: {split}_images", images)
        labels = check_labels(f"{file}: {split}_labels", labels, len(images))
        pairs[split] = images, labels
    train_images, train_labels = pairs["train"]
    multi_label = train_labels.ndim == 2
    held = np.unique(train_labels)
    if not multi_label and len(held) < 2:
        raise UserError(
            f"{file}: train_labels holds class {held[0]} only; allowed: 2 or more classes"
        )
    for split in SPLITS[1:]:
        images, labels = pairs[split]
        if images.shape[1:] != train_images.shape[1:]:
            raise UserError(
                f"{file}: {split}_images has shape {_shape(images)}; "
                f"allowed: N x {_shape(train_images[0])}, as in train_images"
            )
        if labels.shape[1:] != train_labels.shape[1:]:
            raise UserError(
                f"{file}: {split}_labels has shape {_shape(labels)}, train_labels "
                f"{_shape(train_labels)}; allowed: the same columns"
            )
        strange = np.setdiff1d(labels, held)
        if not multi_label and len(strange):
            raise UserError(
                f"{file}: {split}_labels holds class {strange[0]}, which train_labels does not; "
                f"allowed: {', '.join(map(str, held[:20]))}{', ...' if len(held) > 20 else ''}"
            )
    return pairs


def to_split(images: NDArray[np.uint8], labels: NDArray[Any], size: int) -> Split:
    """Tensors of a split, images at `size` pixels: uint8 [N, C, H, W] and labels as in `Split`."""
    pixels = torch.from_numpy(images)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    kind = np.float32 if labels.ndim == 2 else np.int64
    return Split(resized(pixels, size).contiguous(), torch.from_numpy(labels.astype(kind)))


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 [N, C, H, W] to uint8 [N, C, size, size]: bilinear, antialiased where it shrinks."""
    if images.shape[-2:] == (size, size):
        return images
    parts = [
        torch.nn.functional.interpolate(
            part.float(), (size, size), mode="bilinear", align_corners=False, antialias=True
        )
        for part in torch.split(images, 512)
    ]
    return torch.cat([(part + 0.5).clamp_(0.0, 255.0).to(torch.uint8) for part in parts])


def _arrays(file: Path) -> Pairs:
    """The six arrays of the layout, unchecked."""
    if not file.is_file():
        found = "is a folder" if file.is_dir() else "does not exist"
        raise UserError(f"{file}: {found}; allowed: a .npz file in MedMNIST layout")
    key = ""
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{file}: is a single array (.npy); allowed: a .npz file with {LAYOUT}")
        with archive:
            for key in (f"{split}_{what}" for split in SPLITS for what in ("images", "labels")):
                if key not in archive.files:
                    held = ", ".join(sorted(archive.files)[:12]) or "nothing"
                    raise UserError(
                        f"{file}: {key} is missing, the file holds {held}; needed: {LAYOUT}"
                    )
            pairs = {}
            for split in SPLITS:
                pair = []
                for key in (f"{split}_images", f"{split}_labels"):
                    pair.append(archive[key])
                pairs[split] = (pair[0], pair[1])
            return pairs
    except PermissionError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except UNREADABLE as error:
        why = "holds Python objects" if "Object arrays" in str(error) else "is truncated or broken"
        where = f"{key} {why}" if key else "is not a .npz file, or is truncated"
        raise UserError(f"{file}: {where}; allowed: a .npz file with {LAYOUT}") from None


def check_images(where: str, images: NDArray[Any]) -> None:
    """Raises `UserError` for what is no uint8 [N, H, H] or [N, H, H, C] of 1 or 3 channels."""
    if images.dtype != np.uint8:
        raise UserError(f"{where} has dtype {images.dtype}; allowed: uint8")
    if images.ndim not in (3, 4):
        raise UserError(f"{where} has shape {_shape(images)}; allowed: N x H x H or N x H x H x C")
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        hint = " (channels come last)" if images.shape[1] in (1, 3) else ""
        raise UserError(f"{where} has {images.shape[3]} channels; allowed: 1 or 3{hint}")
    if len(images) == 0:
        raise UserError(f"{where} is empty; allowed: 1 image or more")
    if images.shape[1] != images.shape[2] or images.shape[1] == 0:
        raise UserError(f"{where} has images of {_shape(images[0])} pixels; allowed: square ones")


def check_labels(where: str, labels: NDArray[Any], images: int) -> NDArray[Any]:
    """The labels as [N], or as [N, K] where they are multi-label."""
    if labels.dtype.kind not in "iub":
        raise UserError(f"{where} has dtype {labels.dtype}; allowed: integers")
    if labels.ndim not in (1, 2) or labels.shape[-1] == 0 < len(labels):
        raise UserError(
            f"{where} has shape {_shape(labels)}; allowed: N, N x 1, or N x K with 0 and 1"
        )
    if len(labels) != images:
        raise UserError(
            f"{where} has {len(labels)} rows for {images} images; allowed: one an image"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.min() < 0:
        raise UserError(f"{where} holds {labels.min()}; allowed: classes numbered from 0")
    if labels.ndim == 2 and labels.max() > 1:
        raise UserError(
            f"{where} has {labels.shape[1]} columns and holds {labels.max()}; allowed: 0, 1"
        )
    return labels


def _shape(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape)) or "a single number"
