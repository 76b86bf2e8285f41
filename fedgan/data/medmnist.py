"""The 2D data sets of MedMNIST v2, chosen by flag.

J. Yang et al., "MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image
classification", Scientific Data 10, 41, 2023. Flags, label names, addresses and checksums come from
the medmnist package. The file is read here, for the package's own classes insist on the official
number of images, and one's own copy may hold fewer.
"""

from __future__ import annotations

import hashlib
import importlib.util
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import Any

from fedgan.cache import write_atomically
from fedgan.data import npz
from fedgan.data.base import Dataset, Source
from fedgan.errors import UserError, did_you_mean

SIZES = (28, 64, 128, 224)
TIMEOUT = 10.0  # seconds without an answer before a download is given up

FLIP = {
    "pathmnist": (True, "histology: a section has no left or right"),
    "chestmnist": (False, "chest X-ray: the heart lies on the left"),
    "dermamnist": (True, "skin: a lesion has no left or right"),
    "octmnist": (True, "retinal layers: left and right eyes mirror each other"),
    "pneumoniamnist": (False, "chest X-ray: the heart lies on the left"),
    "retinamnist": (True, "fundus: left and right eyes mirror each other"),
    "breastmnist": (True, "ultrasound: left and right breasts mirror each other"),
    "bloodmnist": (True, "smear: a cell has no left or right"),
    "tissuemnist": (True, "kidney cells: a cell has no left or right"),
    "organamnist": (False, "abdominal CT: left and right organs are classes of their own"),
    "organcmnist": (False, "abdominal CT: left and right organs are classes of their own"),
    "organsmnist": (False, "abdominal CT: left and right organs are classes of their own"),
}
"""Whether a mirrored image is as plausible as the original, and why."""


class MedMNIST(Source):
    """A 2D MedMNIST data set; `data.name: pneumoniamnist` is the short way to it.

    The file `{flag}.npz` (28 pixels) or `{flag}_{size}.npz` is looked for at `data.path`, a folder
    or the file itself, then in the medmnist package's own folder, ~/.medmnist. Only when neither
    has it is it downloaded, and its checksum verified. A local file is taken as it is, whatever its
    checksum, so that a part of a data set will do.

    Args:
        flag: the data set, such as pneumoniamnist.
    """

    name = "medmnist"

    def __init__(self, flag: str) -> None:
        known = flags()
        if flag not in known:
            if flag in package().INFO:
                raise UserError(
                    f"data.name: {flag} holds 3D volumes; allowed: the 2D ones, {', '.join(known)}"
                )
            raise UserError(f"data.init_args.flag: unknown '{flag}'{did_you_mean(flag, known)}")
        self.flag = flag
        self.info = known[flag]

    def load(self, path: str | None, size: int | None, seed: int) -> Dataset:
        size = 28 if size is None else size
        if size not in SIZES:
            allowed = ", ".join(map(str, SIZES))
            raise UserError(f"data.size: {size}; allowed for {self.flag}: {allowed}")
        file = self.fetch(path, size)
        pairs = npz.read(file)
        classes = tuple(self.info["label"][str(k)] for k in range(len(self.info["label"])))
        multi_label = self.info["task"].startswith("multi-label")
        self._check(file, pairs, size, len(classes), multi_label)
        train, val, test = (npz.to_split(*pairs[split], size) for split in npz.SPLITS)
        flip, _ = FLIP.get(self.flag, (False, "unknown to this table"))
        return Dataset(self.flag, train, val, test, classes, multi_label, flip)

    def fetch(self, path: str | None, size: int) -> Path:
        """The data set's file: a local one, else a downloaded one.

        Raises `UserError` where `path` does not exist, or nothing could be fetched.
        """
        name = f"{self.flag}.npz" if size == 28 else f"{self.flag}_{size}.npz"
        folders = [Path(root) for root in (package().DEFAULT_ROOT,) if root is not None]
        if path is not None:
            given = Path(path).expanduser()
            if given.is_file():
                return given
            if not given.is_dir():
                raise UserError(f"data.path: {given} does not exist; allowed: a folder, or {name}")
            folders.insert(0, given)
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        if not folders:
            raise UserError(
                f"data.path: missing, and there is no home folder; put {name} in a folder"
            )
        self._download(folders[0] / name, size)
        return folders[0] / name

    def _download(self, file: Path, size: int) -> None:
        suffix = "" if size == 28 else f"_{size}"
        url, checksum = self.info[f"url{suffix}"], self.info[f"MD5{suffix}"]

        def write(target: Path) -> None:
            digest = hashlib.md5(usedforsecurity=False)
            with target.open("wb") as out:
                for chunk in _chunks(url, file):
                    digest.update(chunk)
                    out.write(chunk)
            if digest.hexdigest() != checksum:
                raise UserError(
                    f"{url}: checksum {digest.hexdigest()}, expected {checksum}; try again, "
                    f"or put {file.name} in {file.parent}"
                )

        write_atomically(file, write)

    @staticmethod
    def _check(file: Path, pairs: npz.Pairs, size: int, classes: int, multi_label: bool) -> None:
        """Raises `UserError` where a well-formed file is not this data set."""
        images, labels = pairs["train"]
        if images.shape[1] != size:
            raise UserError(f"{file}: images of {images.shape[1]} pixels; data.size is {size}")
        if multi_label != (labels.ndim == 2) or (multi_label and labels.shape[1] != classes):
            wanted = f"N x {classes}" if multi_label else "N x 1"
            shape = " x ".join(map(str, labels.shape))
            raise UserError(f"{file}: train_labels has shape {shape}; allowed: {wanted}")
        if not multi_label and labels.max() >= classes:
            raise UserError(
                f"{file}: train_labels holds {labels.max()}; allowed: 0 to {classes - 1}"
            )


def _chunks(url: str, file: Path) -> Iterator[bytes]:
    """The bytes behind `url`, a megabyte at a time; `file` is where they could be put by hand."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            while chunk := answer.read(2**20):
                yield chunk
    except (OSError, HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise UserError(
            f"cannot fetch {url} ({why}); put {file.name} in {file.parent}, or name its place "
            "in data.path"
        ) from None


def flags() -> dict[str, dict[str, Any]]:
    """What the medmnist package knows of each 2D data set, by flag."""
    return {flag: info for flag, info in package().INFO.items() if not flag.endswith("3d")}


def package() -> ModuleType:
    """`medmnist.info`, loaded by itself: the package around it imports pandas and skimage, 3 s."""
    parent = importlib.util.find_spec("medmnist")
    if parent is None or parent.origin is None:
        raise UserError("data.name: the medmnist package is not installed: pip install medmnist")
    file = Path(parent.origin).with_name("info.py")
    spec = importlib.util.spec_from_file_location("fedgan_medmnist_info", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file}: cannot be loaded; reinstall medmnist")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
