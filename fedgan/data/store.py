"""Arrays that were expensive to make, kept in the user's cache."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgan.cache import write_atomically

Arrays = dict[str, NDArray[Any]]

UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)
"""What numpy raises, between its versions, for an .npz that is truncated or is something else."""


def remembered(path: Path, build: Callable[[], Arrays]) -> Arrays:
    """The arrays in `path`, or, where there is none, those that `build` makes; they are kept there.

    A cached file that cannot be read is made anew: it can only be litter.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        pass
    except UNREADABLE:
        path.unlink(missing_ok=True)
    arrays = build()

    def save(target: Path) -> None:
        with target.open("wb") as file:  # given a name, numpy would add .npz to it
            np.savez(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, save)
    return arrays
