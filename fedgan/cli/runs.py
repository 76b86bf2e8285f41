"""fedgan train, resume and slurm."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from fedgan.errors import UserError

TRAIN = """\
Every key of the config can be set on the command line, as in
  fedgan train configs/quickstart.yaml --federation.rounds=5 --attack.clients=[0,1]
The keys, their types and defaults:
"""


def add(commands: Any) -> None:
    """Adds these commands to the parser's."""
    train = commands.add_parser("train", help="train a federation", add_help=False)
    train.add_argument("config", nargs="?", help="YAML file, or the name of one that ships")
    train.add_argument("--overwrite", action="store_true", help="replace an existing run directory")
    train.add_argument(
        "--resume", action="store_true", help="go on with the run directory where there is one"
    )
    train.add_argument("--print_config", action="store_true", help="print all keys, do not train")
    train.add_argument("-h", "--help", action="store_true")
    train.set_defaults(takes_overrides=True, action=_train, parser=train)

    resume = commands.add_parser(
        "resume",
        help="go on with a run from its newest checkpoint",
        usage="fedgan resume RUN_DIR [--checkpoint=newest] [--key=value ...]",
        epilog="Of the config, --cluster.*, --evaluate.* and --tracking.* can be changed.",
    )
    resume.add_argument("run_dir")
    resume.add_argument("--checkpoint", help="newest (the default), best, a round, or a folder")
    resume.set_defaults(takes_overrides=True, action=_resume)

    slurm = commands.add_parser(
        "slurm", help="train as a SLURM job that requeues and resumes itself"
    )
    slurm.add_argument("config", help="YAML file, or the name of one that ships")
    slurm_options(slurm)
    slurm.add_argument("--dry-run", action="store_true", help="print the script, do nothing")
    slurm.set_defaults(takes_overrides=True, action=_slurm)


def slurm_options(parser: Any) -> None:
    """What a SLURM job is asked for; see `fedgan.slurm.Request`."""
    parser.add_argument("--gpus", type=int, help="GPUs of each node, a task for each")
    parser.add_argument("--procs", type=int, help="CPU tasks of each node, in place of --gpus")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--time", help="time limit of each start, as HH:MM:SS")
    for name in ("partition", "account", "qos"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--cpus-per-task", type=int, help="and so threads of each task; 1")
    parser.add_argument("--mem", help="memory of each node, as 32G")
    parser.add_argument(
        "--signal-before", type=int, default=120, help="seconds to save a checkpoint in; 120"
    )
    parser.add_argument("--sbatch", default="", help="further options of sbatch, in one word")


def _train(command: argparse.Namespace, overrides: list[str]) -> int:
    from fedgan import config

    if command.help:
        _train_help(command.parser)
        return 0
    if command.config is None:
        raise UserError(
            f"train: which config? one that ships: {', '.join(config.shipped_configs())}"
        )
    experiment = config.read(command.config, overrides)
    if command.print_config:
        print(config.dump(experiment), end="")
        return 0
    from fedgan.experiment import run

    run(experiment, overwrite=command.overwrite, go_on=command.resume)
    return 0


def _train_help(parser: argparse.ArgumentParser) -> None:
    from fedgan import config

    print("usage: fedgan train CONFIG.yaml [--key=value ...] [--overwrite | --resume]\n")
    print(TRAIN)
    text = config.parser(usage=argparse.SUPPRESS, add_help=False).format_help()
    print("\n".join(line for line in text.splitlines() if "CONFIG  " not in line))


def _resume(command: argparse.Namespace, rest: list[str]) -> int:
    from fedgan.experiment import resume

    resume(command.run_dir, rest, checkpoint=command.checkpoint)
    return 0


def _slurm(command: argparse.Namespace, overrides: list[str]) -> int:
    from dataclasses import fields

    from fedgan import slurm

    wanted = {item.name: getattr(command, item.name) for item in fields(slurm.Request)}
    job = slurm.prepare(command.config, overrides, slurm.Request(**wanted))
    if command.dry_run:
        print(job.script, end="")
        return 0
    number = slurm.submit(job)
    output = job.run_dir / f"slurm-{number}.out"
    print(f"job       {number}; what it does now: squeue -j {number}")
    print(f"output    tail -F {shlex.quote(str(output))}")
    print(f"cancel    scancel {number}")
    return 0
