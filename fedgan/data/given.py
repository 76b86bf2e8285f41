"""Images that somebody else has generated: a folder or a .npz file, to be held against a data set.

A folder holds class folders, named as the classes of the real images are or numbered from 0, or
images directly, which then have no labels. A .npz file holds `images`, uint8 [N, H, H] or
[N, H, H, C], and, if they are labelled, `labels`, integers [N] or {0, 1} [N, K].
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgan.cache import write_atomically
from fedgan.data.folder import ENDINGS, luminance, read_image
from fedgan.data.npz import check_images, check_labels
from fedgan.data.store import UNREADABLE
from fedgan.errors import UserError

FEWEST = 8
Found = tuple[Tensor, Tensor | None]


def load_given(path: Path, channels: int, size: int, classes: tuple[str, ...]) -> Found:
    """Images uint8 [N, channels, size, size], and labels as the real ones have them, or None.

    Images of a folder are brought to `size` as the source `folder` does it; those of a .npz file
    must have it. Gray images become colour ones where the real ones are; colour ones become gray in
    a folder only. Raises `UserError` for whatever does not fit.
    """
    path = path.expanduser()
    if path.is_dir():
        images, labels = _from_folder(path, channels, size, classes)
    elif path.is_file():
        images, labels = _from_npz(path, channels, size, classes)
    else:
        raise UserError(f"--images: {path} does not exist; allowed: a folder or a .npz file")
    if len(images) < FEWEST:
        raise UserError(
            f"--images: {path} holds {len(images)} images; at least {FEWEST} are needed"
        )
    return images, labels


def write_labelled(path: Path, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
    """Writes images uint8 [N, C, H, W] and labels such that `load_given` reads them: a .npz file,
    or a folder of class folders of PNG files (one label an image). Whole or not at all.

    Raises `UserError` where it cannot be written.
    """
    from torchvision.io import encode_png

    if path.suffix == ".npz":
        pixels = images.permute(0, 2, 3, 1).numpy()
        arrays = {"images": pixels[..., 0] if pixels.shape[3] == 1 else pixels}
        write_atomically(path, lambda beside: _save(beside, **arrays, labels=labels.numpy()))
        return
    if labels.ndim == 2:
        raise UserError(f"{path}: images with several labels go into a .npz file")
    names = [name.replace("/", "-") for name in classes]
    beside = path.with_name(f".{path.name}.half")
    try:
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            folder = beside / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:06}.png").write_bytes(encode_png(image).numpy().tobytes())
        beside.rename(path)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _save(path: Path, **arrays: Any) -> None:
    with path.open("wb") as file:  # by name, numpy would add .npz to it
        np.savez_compressed(file, **arrays)


def _from_folder(path: Path, channels: int, size: int, classes: tuple[str, ...]) -> Found:
    inside = sorted(one for one in path.iterdir() if one.is_dir() and one.name[0] != ".")
    files, labels = [], []
    for folder in inside or [path]:
        label = _class(folder, classes) if inside else None
        own = sorted(f for f in folder.iterdir() if f.suffix.lower() in ENDINGS and f.is_file())
        files += own
        labels += [label] * len(own)
    if not files:
        raise UserError(f"--images: {path} holds no image; allowed: {', '.join(ENDINGS)}")
    colour = np.stack([read_image(file, size, "crop") for file in files])
    pixels = torch.from_numpy(luminance(colour) if channels == 1 else colour)
    images = pixels.permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(labels) if inside else None


def _class(folder: Path, classes: tuple[str, ...]) -> int:
    names = [name.replace("/", "-").casefold() for name in classes]
    if folder.name.casefold() in names:
        return names.index(folder.name.casefold())
    if folder.name.isdecimal() and int(folder.name) < len(classes):
        return int(folder.name)
    raise UserError(
        f"--images: {folder} is no class of the real images; allowed: {', '.join(classes)}, "
        f"or 0 to {len(classes) - 1}"
    )


def _from_npz(path: Path, channels: int, size: int, classes: tuple[str, ...]) -> Found:
    found = _arrays(path)
    images = found["images"]
    check_images(f"{path}: images", images)
    if images.shape[1] != size:
        raise UserError(
            f"--images: {path} has images of {images.shape[1]} pixels, the real ones have {size}; "
            f"--data.size={images.shape[1]} may bring those to it"
        )
    pixels = torch.from_numpy(images)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    if pixels.shape[1] == 3 and channels == 1:
        raise UserError(f"--images: {path} has colour images, the real ones are gray")
    pixels = pixels.expand(-1, channels, -1, -1).contiguous()
    if "labels" not in found:
        return pixels, None
    labels = check_labels(f"{path}: labels", found["labels"], len(images))
    if labels.ndim == 2 and labels.shape[1] != len(classes):
        raise UserError(
            f"--images: {path}: labels have {labels.shape[1]} columns, not {len(classes)}"
        )
    if labels.ndim == 1 and labels.max() >= len(classes):
        raise UserError(
            f"--images: {path}: labels hold {labels.max()}; classes are 0 to {len(classes) - 1}"
        )
    kind = np.float32 if labels.ndim == 2 else np.int64
    return pixels, torch.from_numpy(labels.astype(kind))


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            held = archive.files
            if "images" in held:
                return {key: archive[key] for key in ("images", "labels") if key in held}
    except (*UNREADABLE, AttributeError, TypeError):  # AttributeError: a single array
        raise UserError(f"--images: {path} is no .npz file, or is broken") from None
    raise UserError(
        f"--images: {path} holds {', '.join(sorted(held)[:12]) or 'nothing'}; needed: images, and "
        "labels if there are any"
    )
