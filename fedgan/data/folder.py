"""Class folders of images: one's own pictures, as they lie on the disk."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedgan.cache import cache_dir
from fedgan.data.base import Dataset, Source, Split
from fedgan.data.store import Arrays, remembered
from fedgan.errors import UserError
from fedgan.seeding import numpy_generator

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val", "test")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""What Pillow calls 8 bits or fewer a channel. Of more, one would have to guess the window."""
VERSION = 1  # of the recipe: raise it with every change that changes bytes


class Folder(Source):
    """Class folders of images, resized once and cached.

    Either root/<class>/*.png, which is split 80/10/10 within each class, or
    root/{train,val,test}/<class>/*.png, which is the one to use where a patient has many images:
    only you know which belong together.

    Args:
        channels: 1 (gray) or 3 (colour); null takes 1 where every image is gray.
        fit: what becomes of an image that is not square: crop its middle, or stretch it.
        flip: whether a mirrored image is as plausible as the original.

    Example:
        >>> data = Folder(fit="stretch").load("my_images", 64, seed=1)  # doctest: +SKIP
    """

    name = "folder"

    def __init__(
        self,
        channels: Literal[1, 3] | None = None,
        fit: Literal["crop", "stretch"] = "crop",
        flip: bool = False,
    ) -> None:
        self.channels = channels
        self.fit = fit
        self.flip = flip

    def load(self, path: str | None, size: int | None, seed: int) -> Dataset:
        size = 64 if size is None else size
        if size < 1:
            raise UserError(f"data.size: {size}; allowed: 1 or more")
        if path is None:
            raise UserError("data.path: missing; folder needs a folder of class folders")
        root = Path(path).expanduser()
        files, labels, splits, classes = listing(root)
        images = self._pixels(root, files, size)
        if splits is None:
            splits = divide(labels, classes, root, seed)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        targets = torch.from_numpy(labels)
        members = [torch.from_numpy(np.flatnonzero(splits == k)) for k in range(len(SPLITS))]
        train, val, test = (Split(pixels[mine], targets[mine]) for mine in members)
        return Dataset(root.resolve().name, train, val, test, classes, flip=self.flip)

    def _pixels(self, root: Path, files: list[Path], size: int) -> NDArray[np.uint8]:
        """All images [N, size, size, C], from the cache where nothing has changed since."""
        digest = hashlib.sha256(repr((VERSION, size, self.channels, self.fit)).encode())
        for file in files:
            stat = file.stat()
            line = (file.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns)
            digest.update(repr(line).encode())

        def build() -> Arrays:
            colour = np.stack([read_image(file, size, self.fit) for file in files])
            gray = bool((colour == colour[..., :1]).all())
            wanted = self.channels or (1 if gray else 3)
            return {"images": luminance(colour) if wanted == 1 else colour}

        target = cache_dir("folder") / f"{size}px-{digest.hexdigest()[:16]}.npz"
        images: NDArray[np.uint8] = remembered(target, build)["images"]
        return images


def listing(
    root: Path,
) -> tuple[list[Path], NDArray[np.int64], NDArray[np.int64] | None, tuple[str, ...]]:
    """The image files under `root`, their labels [N], their splits [N] (0 train, 1 val, 2 test;
    None where `root` holds class folders directly), and the names of the classes.

    Raises `UserError` for a missing folder, an empty one, or a lack of classes.
    """
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise UserError(f"data.path: {root} {found}; allowed: a folder of class folders")
    inside = [folder.name for folder in _folders(root)]
    divided = any(name in SPLITS for name in inside)
    if not divided:
        by_class = _classes(root)
        classes = tuple(by_class)
        rows = [(file, k, 0) for k, name in enumerate(classes) for file in by_class[name]]
    else:
        missing = [split for split in SPLITS if split not in inside]
        if missing or len(inside) > len(SPLITS):
            raise UserError(
                f"{root}: holds {', '.join(inside)}; allowed: train, val and test together, "
                "or class folders alone"
            )
        train = _classes(root / "train")
        classes = tuple(train)
        rows = []
        for number, split in enumerate(SPLITS):
            by_class = train if split == "train" else _classes(root / split, least=1)
            for name, found_files in by_class.items():
                if name not in classes:
                    raise UserError(
                        f"{root / split / name}: a class that train does not have; "
                        f"allowed: {', '.join(classes)}"
                    )
                rows += [(file, classes.index(name), number) for file in found_files]
    labels = np.array([row[1] for row in rows], np.int64)
    splits = np.array([row[2] for row in rows], np.int64)
    return [row[0] for row in rows], labels, splits if divided else None, classes


def divide(
    labels: NDArray[np.int64], classes: tuple[str, ...], root: Path, seed: int
) -> NDArray[np.int64]:
    """Splits [N] (0 train, 1 val, 2 test): of each class a tenth, and at least one image, goes to
    val and as much to test. Raises `UserError` where a class has fewer than three images."""
    rng = numpy_generator(seed, "folder", "splits")
    splits = np.zeros(len(labels), np.int64)
    for label, name in enumerate(classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < len(SPLITS):
            raise UserError(
                f"{root / name}: {len(members)} image(s); allowed: at least 3 in each class, "
                "for train, val and test"
            )
        tenth = max(1, round(len(members) / 10))
        splits[members[:tenth]] = 1
        splits[members[tenth : 2 * tenth]] = 2
    return splits


def read_image(file: Path, size: int, fit: str) -> NDArray[np.uint8]:
    """One image as RGB [size, size, 3], antialiased.

    Raises `UserError` for a broken image, one of several pages, or of more than 8 bits a channel.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # scans are large
            with Image.open(file) as image:
                if getattr(image, "n_frames", 1) > 1:
                    raise UserError(f"{file}: holds several pages or frames; allowed: one")
                if image.mode not in MODES:
                    raise UserError(
                        f"{file}: is of Pillow's mode {image.mode}; allowed: gray or colour "
                        "of 8 bits a channel (choose a window, then convert)"
                    )
                upright = ImageOps.exif_transpose(image)
                colour = _opaque(upright).convert("RGB")
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file}: is not a readable image ({why}); mend or remove it") from None
    bicubic = Image.Resampling.BICUBIC
    if fit == "crop":
        square = ImageOps.fit(colour, (size, size), method=bicubic)
    else:
        square = colour.resize((size, size), bicubic)
    return np.asarray(square, dtype=np.uint8)


def luminance(colour: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB [..., 3] to gray [..., 1] (ITU-R 601, as in Pillow); gray pixels keep their value."""
    red, green, blue = (colour[..., k].astype(np.uint32) for k in range(3))
    gray = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return gray.astype(np.uint8)[..., None]


def _opaque(image: Any) -> Any:
    """The image over black, where it has a transparent part."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, (0, 0, 0, 255)), layered)


def _folders(root: Path) -> list[Path]:
    try:
        inside = sorted(root.iterdir())
    except OSError as error:
        raise UserError(f"{root}: {error.strerror}") from None
    return [entry for entry in inside if entry.is_dir() and not entry.name.startswith(".")]


def _classes(root: Path, least: int = 2) -> dict[str, list[Path]]:
    """The image files of each class folder in `root`, in order of their names."""
    by_class = {
        folder.name: sorted(
            file
            for file in folder.iterdir()
            if file.suffix.lower() in ENDINGS and not file.name.startswith(".") and file.is_file()
        )
        for folder in _folders(root)
    }
    if len(by_class) < least:
        found = f"only class {next(iter(by_class))}" if by_class else "no class folder"
        raise UserError(f"{root}: holds {found}; allowed: {least} or more folders, one a class")
    for name, files in by_class.items():
        if not files:
            raise UserError(f"{root / name}: holds no image; allowed: {', '.join(ENDINGS)}")
    return by_class
