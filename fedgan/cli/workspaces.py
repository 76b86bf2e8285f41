"""fedgan workspace."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgan.errors import UserError

if TYPE_CHECKING:
    from fedgan.settings import Experiment


def add(commands: Any) -> None:
    """Adds this command to the parser's."""
    workspace = commands.add_parser(
        "workspace", help="save a W&B view of a run or a grid; needs a W&B account"
    )
    workspace.add_argument("folder", metavar="RUN|GRID_DIR", help="a run or grid directory")
    workspace.add_argument("--project", help="W&B's project; what the config says")
    workspace.add_argument("--entity", help="W&B's team or user; what the config says")
    workspace.add_argument("--name", help="of the view; 'fedgan: ' and the folder's")
    workspace.add_argument(
        "--out", help="write the view's spec to this JSON file, and save nothing"
    )
    workspace.set_defaults(action=_workspace)


def _workspace(command: argparse.Namespace, rest: list[str]) -> int:
    from dataclasses import replace

    folder = Path(command.folder)
    runs = _runs(folder)
    wandb = runs[0][1].tracking.wandb
    project, entity = command.project or wandb.project, command.entity or wandb.entity
    for key, value in (("project", project), ("entity", entity)):
        if value is None:
            raise UserError(f"workspace: which --{key}? the config names none")
    from fedgan.cache import write_json
    from fedgan.tracking import workspace

    about = workspace.subject(folder, runs)
    if command.name:
        about = replace(about, name=command.name)
    view = workspace.view(about, str(project), str(entity))
    if command.out:
        write_json(Path(command.out), workspace.spec(view))
        print(f"spec      {command.out}")
    else:
        print(f"saved     {workspace.save(view)}")
    return 0


def _runs(folder: Path) -> list[tuple[Path, Experiment]]:
    """The run itself, or those of the grid's cells that have begun."""
    from fedgan.rundir import CONFIG, read_settings

    if (folder / CONFIG).is_file():
        paths = [folder]
    else:
        paths = [path.parent for path in sorted(folder.glob(f"cells/*/{CONFIG}"))]
    if not paths:
        raise UserError(f"{folder}: neither a run nor a grid with a run in it")
    return [(path, read_settings(path, [])) for path in paths]
