"""fedgan components and data."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from fedgan.errors import UserError, did_you_mean


def add(commands: Any) -> None:
    """Adds these commands to the parser's."""
    components = commands.add_parser("components", help="what a config can choose from, by name")
    components.add_argument(
        "names", nargs="*", metavar="NAME", help="all about one: what it does and its arguments"
    )
    components.set_defaults(action=_components)

    data = commands.add_parser("data", help="list, look at or fetch data sets")
    verbs = data.add_subparsers(title="commands", required=True, metavar="COMMAND")
    verbs.add_parser("list", help="what data.name can be").set_defaults(action=_data_list)
    show = verbs.add_parser("show", help="write a labelled contact sheet, and who holds what")
    show.set_defaults(action=_data_show)
    fetch = verbs.add_parser("fetch", help="download or build a data set, and say where it is")
    fetch.set_defaults(action=_data_fetch)
    for verb in (show, fetch):
        verb.add_argument("name", help="a config file, or what data.name can be")
        verb.add_argument("--path", help="data.path")
        verb.add_argument("--size", type=int, help="data.size")
    show.add_argument("--out", default=".", help="folder for the pictures")


def _components(command: argparse.Namespace, rest: list[str]) -> int:
    import inspect

    from fedgan.choices import rooms
    from fedgan.components import available, describe

    found = {key: available(room, base) for key, (room, base) in rooms().items()}
    for wanted in command.names:
        if not any(wanted in known for known in found.values()):
            every = {name for known in found.values() for name in known}
            raise UserError(f"components: unknown '{wanted}'{did_you_mean(wanted, every)}")
    for key, known in found.items():
        shown = {name: cls for name, cls in known.items() if name in (command.names or known)}
        if shown:
            print(key)
        for name, cls in shown.items():
            about = inspect.getdoc(cls) if command.names else None
            about = (about or "").split("\n>>>")[0].strip() or describe(cls)
            print(f"  {name:20} {textwrap.indent(about, 23 * ' ').lstrip()}")
            for parameter in inspect.signature(cls).parameters.values():
                default = "" if parameter.default is parameter.empty else f" = {parameter.default}"
                print(f"  {'':20}   init_args.{parameter.name}{default}")
    return 0


def _data_list(command: argparse.Namespace, rest: list[str]) -> int:
    from fedgan.data import list_sources

    for name, line in list_sources():
        print(f"{name:16} {line}")
    return 0


def _data_show(command: argparse.Namespace, rest: list[str]) -> int:
    import numpy as np

    from fedgan.data.sheets import contact_sheet, partition_chart
    from fedgan.plan import plan_data

    settings = _data_settings(command)
    out = Path(command.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {out}: cannot be made ({error.strerror})") from None
    dataset, _, table = plan_data(settings)
    stem = dataset.name.replace("/", "-")
    sheet, chart = out / f"{stem}.png", out / f"{stem}-clients.png"
    contact_sheet(dataset, sheet, settings.seed)
    partition_chart(np.array(table), dataset.classes, chart)
    sizes = ", ".join(
        f"{len(getattr(dataset, split))} {split}" for split in ("train", "val", "test")
    )
    print(f"{dataset.name}: {sizes}; {dataset.channels} x {dataset.size} x {dataset.size}")
    print(sheet, chart, sep="\n")
    return 0


def _data_fetch(command: argparse.Namespace, rest: list[str]) -> int:
    from fedgan.data import find_source

    settings = _data_settings(command)
    source = find_source(settings.data)
    dataset = source.load(settings.data.path, settings.data.size, settings.seed)
    print(f"{dataset.name}: {len(dataset.train)} training images of {dataset.size} pixels at hand")
    return 0


def _data_settings(command: argparse.Namespace) -> Any:
    from fedgan import config

    settings = config.about_data(command.name)
    settings.data.path = command.path or settings.data.path
    settings.data.size = command.size or settings.data.size
    return settings
