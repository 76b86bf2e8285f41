"""A saved W&B workspace view for a run or a grid, built by wandb-workspaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgan.errors import UserError
from fedgan.settings import Experiment, as_component
from fedgan.tracking.leaderboard import LEADERBOARD
from fedgan.tracking.series import CHARTED
from fedgan.tracking.wandb_session import RUN_ID, has_key

MOST_CLIENTS = 50
"""Lines in one chart of a view; those of further clients are in the run's own charts."""
BY_DEFENSE = "labels.defense"
"""Where a run's W&B config holds what runs are compared by."""


@dataclass(frozen=True)
class Subject:
    """What a view shows: one run, or all of a group.

    Attributes:
        name: of the view.
        group: W&B's group of the runs; None for a single run.
        run: what tells a single run: `ID` and its W&B id; where it has none yet, `Name` and that.
        distances: figures of the looks on the way by which generators are ranked.
        final: those of the end.
        clients: the most that a run has.
    """

    name: str
    group: str | None
    run: tuple[str, str]
    distances: tuple[str, ...]
    final: tuple[str, ...]
    clients: int


def subject(folder: Path, runs: Sequence[tuple[Path, Experiment]]) -> Subject:
    """What to show of a run directory, or of a grid directory whose run directories are `runs`."""
    looks = [settings.evaluate for _, settings in runs]
    path, first = runs[0]
    wandb = first.tracking.wandb
    single = path == folder
    return Subject(
        name=f"fedgan: {folder.resolve().name}",
        group=None if single else wandb.group or folder.resolve().name,
        run=_run(path, wandb.name),
        distances=_names([look.watch_encoder for look in looks]),
        final=tuple(f"final/{name}" for name in _names([look.encoder for look in looks])),
        clients=max(settings.federation.clients for _, settings in runs),
    )


def view(about: Subject, project: str, entity: str) -> Any:
    """The view as wandb-workspaces' `Workspace`, which knows its spec and how to save itself.

    Raises `UserError` where wandb-workspaces is not installed, or cannot be used.
    """
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError as error:  # it is not there, or does not fit the wandb that is
        raise UserError(
            f"workspace: no use of wandb-workspaces ({error}); `pip install 'fedgan[workspaces]'` "
            "gets one that fits"
        ) from None
    if about.group is not None:
        shown, groups = ws.Metric("Group") == about.group, [ws.Config("labels.attack")]
        groups.append(ws.Config(BY_DEFENSE))
    else:
        shown, groups = ws.Metric(about.run[0]) == about.run[1], []
    return ws.Workspace(
        entity=entity,
        project=project,
        name=about.name,
        sections=[
            ws.Section(name=name, panels=panels, is_open=True)
            for name, panels in _sections(about).items()
        ],
        settings=ws.WorkspaceSettings(x_axis="round", max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=[shown],
            groupby=groups,
            pinned_columns=[f"summary:{name}" for name in (*about.final, "final/presence")],
        ),
    )


def spec(workspace: Any) -> dict[str, Any]:
    """What W&B would be sent: names, and the view's own settings."""
    found: dict[str, Any] = workspace._spec
    return found


def save(workspace: Any) -> str:
    """Saves the view and returns its address.

    Raises `UserError` where this machine has no W&B account, or W&B does not take the view.
    """
    if not has_key():
        raise UserError(
            "workspace: saving a view needs a W&B account, and this machine has none (wandb login, "
            "or WANDB_API_KEY); --out=FILE.json writes its spec without one"
        )
    try:
        return str(workspace.save().url)
    except Exception as error:  # of requests, of W&B, of its answer: there is no common one
        line = (str(error).splitlines() or [""])[0]
        raise UserError(f"workspace: not saved: {type(error).__name__}: {line}") from None


def _sections(about: Subject) -> dict[str, list[Any]]:
    import wandb_workspaces.reports.v2 as wr

    several = about.group is not None
    # Runs of a comparison as one line a defence: the mean, in a band of one standard deviation.
    grouped: dict[str, Any] = {}
    if several:
        grouped = {
            "groupby": wr.Config(BY_DEFENSE),
            "groupby_aggfunc": "mean",
            "groupby_rangefunc": "stddev",
        }

    def over_rounds(title: str, keys: Sequence[str], **more: Any) -> Any:
        return wr.LinePlot(title=title, x="round", y=list(keys), **more)

    figures = [over_rounds(f"{key} (less is better)", [key], **grouped) for key in about.distances]
    figures.append(over_rounds("trigger presence", ["presence"], range_y=(0, 1), **grouped))
    if several:
        figures += [
            wr.BarPlot(title=key, metrics=[key], groupby=wr.Config(BY_DEFENSE))
            for key in (*about.final, "final/presence")
        ]
        figures.append(wr.WeavePanelSummaryTable(table_name=LEADERBOARD))
    clients = range(min(about.clients, MOST_CLIENTS))
    per_client = [
        over_rounds(title, [f"{key}/client {client}" for client in clients])
        for key, title in CHARTED.items()
    ]
    weights = [f"weight/client {client}" for client in clients]
    per_client.append(over_rounds("weights", weights, plot_type="stacked-area"))
    flagged = [f"detection/{who}_flagged" for who in ("malicious", "benign")]
    per_client.append(over_rounds("flagged clients", flagged))
    axis = {"mode": "grid", "grid_x_axis": "step", "grid_y_axis": "run"}
    samples = wr.MediaBrowser(title="samples", media_keys=["samples"], **axis)
    return {"figures": figures, "samples": [samples], "clients": per_client}


def _names(encoders: Sequence[Any]) -> tuple[str, ...]:
    """Distances in the features of all of these encoders, each a choice or a list of choices."""
    from fedgan.metrics.fidelity import distance_name

    choices = [c for one in encoders for c in (one if isinstance(one, list) else [one])]
    named = (str(as_component(c).name) for c in choices if as_component(c).name)
    return tuple(dict.fromkeys(distance_name(name) for name in named))


def _run(run_dir: Path, name: str | None) -> tuple[str, str]:
    known = run_dir / RUN_ID
    if known.is_file():
        return "ID", known.read_text(encoding="utf-8").strip()
    return "Name", name or run_dir.resolve().name
