"""The user's cache directory: built data sets, resized folders, features of real images."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedgan.errors import UserError


def cache_dir(*parts: str) -> Path:
    """A folder under the user's cache, made if need be; FEDGAN_CACHE moves the whole of it.

    Raises `UserError` where it cannot be written.
    """
    import platformdirs

    root = os.environ.get("FEDGAN_CACHE") or platformdirs.user_cache_dir("fedgan")
    folder = Path(root, *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cache folder {folder}: {error.strerror}; set FEDGAN_CACHE to a folder you can write"
        ) from None
    return folder


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk, so that a rename in it outlives a loss of power.

    Where the file system does not know how, as some networks' do not, it does nothing.
    """
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` on a file beside `path`, flushes it to disk and renames it into place.

    A reader, or a process killed half way, sees the old file or the new one, nothing between.
    Raises `UserError` where the disk is full or read-only; the old file is then untouched.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    beside = Path(name)
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.chmod(0o644)
        beside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    except RuntimeError as error:  # torch's zip writer, on a full disk
        line = str(error).split("\n", 1)[0]
        raise UserError(f"cannot write {path}: {line}") from None
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Writes `content` atomically; numbers that JSON does not have become null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    write_atomically(path, lambda beside: _write_text(beside, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
