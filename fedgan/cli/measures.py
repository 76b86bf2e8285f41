"""fedgan evaluate, generate and detect."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedgan.errors import UserError

EVALUATE = """\
Measures the generator of a run and writes RUN_DIR/evaluation.json, measure by measure, so that
Ctrl-C loses the one at hand only; figures of the same generator that are there already stay beside
the new. With --images, images that somebody else has made: class folders, a folder of images, or a
.npz file with `images` and perhaps `labels`. With --clean and --attacked, also how much of the harm
a defence has taken back (--only=recovery: that alone, of what evaluation.json holds already); runs
of several seeds give an interval.
"""
DETECT = """\
Replays FedDetect, as published, on the losses that any federation has written down, and tells per
round who is flagged, and at the end who is suspected and how often.

LOSSES.csv has the columns round, client and g_loss, and d_loss where the rule looks at it, in any
order; n_images, if it is there, gives FedAvg's weights, else all weigh the same; other columns are
ignored. Clients are numbers or names, and may be missing in some rounds. Rounds count from 0 if
there is a round 0, else from 1. A client whose loss is empty or not finite is left out of a round.
"""
DETECT_KEYS = """\
the rule:
  --defense.loss=g_loss_last        or d_loss_last, both_last; the table has one g_loss and one
                                    d_loss, so that g_loss, d_loss and both mean the same here
  --defense.decay=0.9               factor in (0, 1] of a flag
  --defense.decay_form=compounding  or per-flag: k flags leave decay ** k
  --defense.warm_up=10              acts in rounds above it, counted from 0
  --defense.forest_seed=999
A flag is no proof: the forest flags somebody in most rounds even where nobody attacks.
"""


def add(commands: Any) -> None:
    """Adds these commands to the parser's."""
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a run's generator again, or somebody else's images",
        usage="fedgan evaluate RUN_DIR ... | --images PATH --real SOURCE [options] [--key=value]",
        description=EVALUATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument("run_dir", nargs="*", help="one run, or those of several seeds")
    evaluate.add_argument("--checkpoint", help="newest (the default), best, a round, or a folder")
    evaluate.add_argument("--samples", type=int, help="images to generate")
    evaluate.add_argument(
        "--encoder", help="efficientnet-lite0, domain or inception; several with commas between"
    )
    evaluate.add_argument(
        "--only", help="measures, with commas between, as fidelity,utility; `fedgan components`"
    )
    evaluate.add_argument("--images", metavar="FOLDER|NPZ", help="images that are measured instead")
    evaluate.add_argument(
        "--real", metavar="SOURCE", help="what they are held against: a config, or a data.name"
    )
    evaluate.add_argument("--out", help="where their figures go; evaluation.json")
    evaluate.add_argument(
        "--clean",
        action="extend",
        nargs="+",
        metavar="RUN",
        help="the same without an attack: gives recovery",
    )
    evaluate.add_argument(
        "--attacked", action="extend", nargs="+", metavar="RUN", help="the same undefended"
    )
    evaluate.set_defaults(takes_overrides=True, action=_evaluate)

    generate = commands.add_parser("generate", help="write labelled images of a run's generator")
    generate.add_argument("run_dir")
    generate.add_argument("--out", required=True, help="a .npz file, or a folder of class folders")
    generate.add_argument("--samples", type=int, help="how many, in the training images' mix")
    generate.add_argument(
        "--rebalance", action="store_true", help="what smaller classes lack to the largest"
    )
    generate.add_argument("--checkpoint", help="newest (the default), best, a round, or a folder")
    generate.set_defaults(action=_generate)
    _add_detect(commands)


def _add_detect(commands: Any) -> None:
    detect = commands.add_parser(
        "detect",
        help="who is odd in a table of losses, from any federation",
        usage="fedgan detect LOSSES.csv [--defense.KEY=VALUE ...] [--out OUT.csv]",
        description=DETECT,
        epilog=DETECT_KEYS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    detect.add_argument("table", metavar="LOSSES.csv")
    detect.add_argument(
        "--out",
        metavar="OUT.csv",
        help="write what was found: round, client, score, flagged, acted (the round changed "
        "weights), weight (after it)",
    )
    detect.set_defaults(takes_overrides=True, action=_detect)


def _evaluate(command: argparse.Namespace, rest: list[str]) -> int:
    from rich.console import Console

    from fedgan import experiment
    from fedgan.rundir import read_settings
    from fedgan.tracking.console import Measuring, print_evaluation

    _check_evaluate(command)
    only = command.only.split(",") if command.only else []
    asked = {"samples": command.samples, "encoder": command.encoder, "overrides": rest}
    console = Console()
    if command.images is not None:
        path = Path(command.out or "evaluation.json")
        with Measuring(console) as tick:
            result = experiment.evaluate_images(
                command.images, command.real, out=path, only=only, tick=tick, **asked
            )
        print_evaluation(console, result)
        console.print(f"results   {path}", soft_wrap=True)
        return 1 if result["failed"] else 0
    for run_dir in command.run_dir:
        read_settings(Path(run_dir), rest)  # all of them, before the first is measured
    measures, failed = [name for name in only if name != "recovery"], False
    for run_dir in command.run_dir if measures or not only else ():
        with Measuring(console) as tick:
            result = experiment.evaluate(
                run_dir, checkpoint=command.checkpoint, only=measures, tick=tick, **asked
            )
        print_evaluation(console, result)
        console.print(f"results   {Path(run_dir) / 'evaluation.json'}", soft_wrap=True)
        failed = failed or bool(result["failed"])
    if command.clean is not None:
        _recovery(console, command)
    return 1 if failed else 0


def _check_evaluate(command: argparse.Namespace) -> None:
    if bool(command.run_dir) == (command.images is not None):
        raise UserError("evaluate: what? a run directory, or --images and --real")
    if (command.images is None) != (command.real is None):
        raise UserError("evaluate: --images and --real go together")
    if command.checkpoint is not None and command.images is not None:
        raise UserError("evaluate: --checkpoint is of a run, not of --images")
    if command.out is not None and command.images is None:
        raise UserError("evaluate: --out is for --images; a run has its evaluation.json")
    if (command.clean is None) != (command.attacked is None):
        raise UserError("evaluate: --clean and --attacked go together")
    if command.clean is not None and command.images is not None:
        raise UserError("evaluate: recovery is of runs, not of --images")
    if command.out is not None and not Path(command.out).absolute().parent.is_dir():
        raise UserError(f"evaluate: --out: there is no folder {Path(command.out).parent}")
    if command.clean is None and "recovery" in (command.only or "").split(","):
        raise UserError("evaluate: recovery needs --clean and --attacked")


def _recovery(console: Any, command: argparse.Namespace) -> None:
    from fedgan.recoveries import RECOVERY, recoveries, write_recovery

    arms = {
        name: [Path(run) for run in runs]
        for name, runs in (
            ("clean", command.clean),
            ("attacked", command.attacked),
            ("defended", command.run_dir),
        )
    }
    found = recoveries(**arms)
    for name, one in found.items():
        console.print(f"{name}: {one.verdict}", highlight=False, soft_wrap=True)
    path = arms["defended"][0] / RECOVERY
    write_recovery(path, found, arms)
    console.print(f"recovery  {path}", soft_wrap=True)


def _generate(command: argparse.Namespace, rest: list[str]) -> int:
    from fedgan.experiment import generate

    counts = generate(
        command.run_dir,
        command.out,
        samples=command.samples,
        rebalance=command.rebalance,
        checkpoint=command.checkpoint,
    )
    total = ", ".join(f"{count} of {name}" for name, count in counts.items())
    print(f"{sum(counts.values())} images in {command.out}: {total}")
    return 0


def _detect(command: argparse.Namespace, overrides: list[str]) -> int:
    from fedgan.detect import detect

    out = None if command.out is None else Path(command.out)
    print(detect(Path(command.table), overrides, out))
    return 0
