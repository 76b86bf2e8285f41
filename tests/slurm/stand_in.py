"""Stands in for `python -m fedgan train ... --resume`: a round is 0.1 s of sleep.

Like fedgan it goes on from the newest checkpoint and, on USR1 or TERM, saves one and exits with
code 138 or 143. STAND_IN=forgetful saves none then, STAND_IN=broken fails at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def main(argv: list[str]) -> int:
    assert argv[:3] == ["-m", "fedgan", "train"]
    assert "--resume" in argv
    options = dict(word[2:].split("=", 1) for word in argv[4:] if "=" in word)
    run_dir = Path(options["run_dir"])
    rounds = int(options.get("federation.rounds", 600))  # a grid's are in its config
    run_dir.mkdir(parents=True, exist_ok=True)
    rank, manner = int(os.environ["SLURM_PROCID"]), os.environ.get("STAND_IN", "")
    stopped: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stopped.append(number))
    names = ("MASTER_ADDR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SLURM_STEP_TASKS_PER_NODE")
    seen = {"argv": argv, "cwd": os.getcwd(), **{name: os.environ.get(name) for name in names}}
    (run_dir / "config.yaml").touch()  # what tells a run from any other folder
    (run_dir / f"rank{rank}.json").write_text(json.dumps(seen))
    if manner == "broken":
        return 1

    checkpoints = run_dir / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    done = max((int(path.name[6:]) for path in checkpoints.iterdir()), default=0)
    print(f"rank {rank} from round {done}")
    while done < rounds and not stopped:
        time.sleep(0.1)
        done += 1
    if rank == 0 and manner != "forgetful":
        (checkpoints / f"round_{done:04d}").mkdir(exist_ok=True)
    print(f"rank {rank} to round {done}")
    return 128 + stopped[0] if stopped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
