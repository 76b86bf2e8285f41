"""The command line. Heavy imports wait until a command needs them, so that --help is quick."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from fedgan import __version__
from fedgan.cli import about, compare, grids, measures, report, runs, workspaces
from fedgan.errors import Interrupted, RunError, SharedError, UserError, client_of
from fedgan.launcher import is_main_process, is_one_of_many, must_tell, who

OVERRIDE = re.compile(r"--\w+\.")
"""How --key.of.the.config=value begins; no option of a command has a dot."""
LONGEST_DOUBT = 20.0
"""Seconds that a rank other than 0 looks whether rank 0 has met the same error."""

DESCRIPTION = "Federated GAN training for medical images, attacks on it and defences of it."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0; 2 for bad input; 1 where a run has failed; 128
    and the signal's number where one has stopped it, as 130 after Ctrl-C."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fedgan: %(message)s"))
    logging.getLogger("fedgan").addHandler(handler)
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        # argparse takes an option that it does not know for a positional if it holds a space
        overrides = [word for word in words if OVERRIDE.match(word)]
        words = [word for word in words if not OVERRIDE.match(word)]
        command, rest = _parser().parse_known_args(words)
        rest += overrides
        if rest and not command.takes_overrides:
            raise SharedError(f"unexpected argument '{rest[0]}'; see --help")
        code: int = command.action(command, rest)
        return code
    except BrokenPipeError:  # `fedgan ... | head`: whoever read has heard enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UserError as error:
        return _fail(str(error), shared=isinstance(error, SharedError))
    except RunError as error:
        return _fail(str(error), 1, error.details)
    except KeyboardInterrupt as stop:
        if is_main_process():  # the terminal's Ctrl-C comes to all
            print(f"fedgan: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 128 + (stop.signum if isinstance(stop, Interrupted) else signal.SIGINT)
    except Exception as error:
        client, hint = client_of(error), getattr(error, "fedgan_hint", "")
        about = "" if client is None else f"client {client}: "
        line = traceback.format_exception_only(error)[-1].strip()
        return _fail(f"{about}{line}{hint and '; '}{hint}", 1, traceback.format_exc())
    finally:
        logging.getLogger("fedgan").removeHandler(handler)


def _fail(message: str, code: int = 2, details: str = "", *, shared: bool = False) -> int:
    if is_one_of_many() and not is_main_process():
        if shared or not must_tell(LONGEST_DOUBT):
            return code
        message = f"{who()}: {message}"
    if details:
        print(details, file=sys.stderr)
    print(f"fedgan: error: {message}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})  # --over is no --overwrite

    def error(self, message: str) -> NoReturn:
        raise SharedError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("fedgan", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"fedgan {__version__}")
    parser.set_defaults(takes_overrides=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in (runs, grids, measures, compare, report, workspaces, about):
        group.add(commands)
    return parser
