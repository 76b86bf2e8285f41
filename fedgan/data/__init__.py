"""Labelled images: their sources, who holds which, and what is done to them on the device."""

from __future__ import annotations

from fedgan import components, settings
from fedgan.data.base import Dataset, Source, Split
from fedgan.errors import UserError, did_you_mean

__all__ = ["Dataset", "Source", "Split", "find_source"]


def find_source(choice: settings.Data) -> Source:
    """The source that a config's `data` names: one of this room, a MedMNIST flag, or a class path.

    Raises `UserError` for an unknown name, or for `init_args` that the source does not take.

    >>> find_source(settings.Data(name="brain-mri")).name
    'brain-mri'
    """
    room = components.available(__name__, Source)
    flag = choice.name
    if choice.class_path is not None or flag is None or flag in room:
        return components.build("data", choice, components.find("data", choice, __name__, Source))

    from fedgan.data.medmnist import MedMNIST, flags, package

    if flag not in package().INFO:
        names = [*room, *flags()]
        raise UserError(
            f"data.name: '{flag}' is no source, nor a MedMNIST flag{did_you_mean(flag, names)}"
        )
    if choice.init_args:
        found = ", ".join(choice.init_args)
        raise UserError(f"data.init_args: {found}; {flag} takes none")
    return MedMNIST(flag=flag)


def list_sources() -> list[tuple[str, str]]:
    """What `data.name` can be: names and a line on each, the MedMNIST flags last."""
    from fedgan.data.medmnist import SIZES, flags

    room = components.available(__name__, Source)
    own = [(name, components.describe(cls)) for name, cls in room.items() if name != "medmnist"]
    sizes = ", ".join(map(str, SIZES))
    official = []
    for flag, info in flags().items():
        channels = "RGB" if info["n_channels"] == 3 else "gray"
        counts = "/".join(str(info["n_samples"][split]) for split in ("train", "val", "test"))
        facts = (
            f"{len(info['label'])} classes, {info['task']}, {channels}, {counts}; {sizes} pixels"
        )
        official.append((flag, facts))
    return own + official
