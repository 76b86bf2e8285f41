"""Stop signals, a rank that dies and a rank that fails: one line, a code, and nothing left over."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

LONG = {"federation.rounds": 5000, "checkpoint.every": 3}
SHORT = {"federation.rounds": 4}


def rows(folder):
    path = folder / "metrics.csv"
    return path.read_text().count("\n") - 1 if path.is_file() else 0


def note_ranks(folder):
    """A patch for a child: each rank leaves its process id in a file when it begins to train."""

    def install():
        from fedgan.federation import Federation

        run = Federation.run

        def patched(federation):
            beside = folder / f"pid_{federation.cluster.rank}.new"
            beside.write_text(str(os.getpid()))
            beside.replace(beside.with_suffix(""))
            return run(federation)

        Federation.run = patched

    return install


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, warm, write_config, outcome):
    """`unbroken(rounds)` is what as many rounds come to, which nothing stops."""
    from fedgan.experiment import run

    known = {}

    def play(rounds):
        if rounds not in known:
            folder = tmp_path_factory.mktemp("unbroken") / "run"
            run(write_config(folder, {**LONG, "federation.rounds": rounds}))
            known[rounds] = outcome(folder)
        return known[rounds]

    return play


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143), (signal.SIGUSR1, None, 138)],
)
def test_a_stop_signal(start, tmp_path, write_config, unbroken, outcome, number, name, code, world):
    folder = tmp_path / "run"
    child = start("train", write_config(folder, LONG), f"--cluster.devices={world}")
    child.wait_for(lambda: rows(folder) >= 1)
    os.kill(child.pid, number)
    assert child.end() == code, child.says()

    (line,) = child.says().splitlines()
    found = re.fullmatch(
        rf"fedgan: stopped by {name or 'SIGUSR1'} in round (\d+); "
        rf"`fedgan resume {re.escape(str(folder))}` goes on after round (\d+)",
        line,
    )
    assert found, line
    done = rows(folder)
    assert (int(found[1]), int(found[2])) == (done + 1, done)
    assert (folder / "checkpoints" / f"round_{done:04d}").is_dir()
    assert [*folder.glob("checkpoints/.*")] == []

    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("rounds: 5000", f"rounds: {done + 1}"))
    resumed = start("resume", folder)
    assert resumed.end() == 0, resumed.says()
    assert outcome(folder) == unbroken(done + 1)


@pytest.mark.parametrize("world", [1, 2])
def test_a_second_ctrl_c_ends_a_hanging_client_at_once(start, tmp_path, write_config, world):
    hangs = tmp_path / "hangs"

    def hang():
        import torch.distributed as dist

        from fedgan.client import ClientGAN

        def sleep(*_):
            if dist.get_rank() == world - 1:  # rank 0 of 2 waits for it in a collective
                hangs.touch()
                time.sleep(600)

        ClientGAN.training_step = sleep

    words = ("train", write_config(tmp_path / "run", SHORT), f"--cluster.devices={world}")
    child = start(*words, before=hang)
    child.wait_for(hangs.exists)
    presses = 0
    while child.code is None and presses < 20:
        os.kill(child.pid, signal.SIGINT)
        presses += 1
        time.sleep(1.5)  # two of them within a second count as one
    assert child.end(10) == 130, child.says()
    assert presses >= 2
    assert "Traceback" not in child.says()


def test_a_second_ctrl_c_that_another_rank_takes_for_the_first(start, tmp_path, write_config):
    """The clock of the first began later there: it must not call this rank killed."""
    hangs = tmp_path / "hangs"

    def hang():
        import torch.distributed as dist

        from fedgan.client import ClientGAN

        def sleep(*_):
            if dist.get_rank() == 1:  # rank 0 waits for it in a collective
                hangs.write_text(str(os.getpid()))
                time.sleep(600)

        ClientGAN.training_step = sleep

    words = ("train", write_config(tmp_path / "run", SHORT), "--cluster.devices=2")
    child = start(*words, before=hang)
    child.wait_for(lambda: hangs.exists() and hangs.read_text())
    pid = int(hangs.read_text())
    while pid in child.processes():
        os.kill(pid, signal.SIGINT)
        time.sleep(1.5)
    assert child.end() == 130, child.says()
    assert "fedgan: stopped at once" in child.says()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_killed(start, tmp_path, write_config, rank, record_property):
    folder = tmp_path / "run"
    words = ("train", write_config(folder, {**LONG, "checkpoint.every": 1}), "--cluster.devices=2")
    child = start(*words, before=note_ranks(tmp_path))
    child.wait_for(lambda: rows(folder) >= 2 and (tmp_path / "pid_1").exists())
    os.kill(int((tmp_path / f"pid_{rank}").read_text()), signal.SIGKILL)
    killed = time.monotonic()
    assert child.end() == 1, child.says()
    record_property("seconds", time.monotonic() - killed)
    (line,) = [line for line in child.says().splitlines() if line.startswith("fedgan:")]
    assert "Traceback" not in child.says()
    assert re.fullmatch(
        rf"fedgan: error: rank {rank}: it was killed.*; "
        rf"`fedgan resume {re.escape(str(folder))}` goes on after round \d+",
        line,
    )


@pytest.mark.parametrize("world", [2, 3])
def test_a_rank_fails(start, tmp_path, write_config, world):
    folder = tmp_path / "run"

    def break_rank_1():
        import torch.distributed as dist

        from fedgan.server import Server

        step, rounds = Server.step, []

        def patched(server, update, **how):
            rounds.append(1)
            if dist.get_rank() == 1 and len(rounds) == 2:
                raise ValueError("the patch in this test")
            step(server, update, **how)

        Server.step = patched

    words = ("train", write_config(folder, SHORT), f"--cluster.devices={world}")
    child = start(*words, before=break_rank_1)
    assert child.end() == 1, child.says()
    says = child.says()
    assert says.count("Traceback (most recent call last)") == 1, says
    errors = [line for line in says.splitlines() if line.startswith("fedgan: error:")]
    assert errors == [
        "fedgan: error: rank 1: ValueError: the patch in this test; "
        f"`fedgan resume {folder}` goes on after round 1"
    ]
    # Rank 0 is ended by force while it waits for rank 1's clients: half a round 2 may be beside it.
    assert [path.name for path in folder.glob("checkpoints/round_*")] == ["round_0001"]


def marked(mark):
    """Processes with a mark in their environment, wherever their parent or session is."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (entry / "environ").read_bytes():  # empty for a zombie
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_a_rank_of_torchrun_is_killed(tmp_path, write_config, session_cache):
    folder, mark = tmp_path / "run", uuid.uuid4().hex
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "-m", "fedgan"]
    config = write_config(folder, {**LONG, "checkpoint.every": 1})
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    with (tmp_path / "output").open("w+") as output:
        torchrun = subprocess.Popen(
            [sys.executable, "-m", *words, "train", str(config)],
            env={**os.environ, "PYTHONPATH": paths, "FEDGAN_TEST_MARK": mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            wait_for(lambda: rows(folder) >= 1 or torchrun.poll() is not None, 120)
            (rank_1,) = [pid for pid in marked(mark) if b"\0RANK=1\0" in environ(pid)]
            os.kill(rank_1, signal.SIGKILL)
            wait_for(lambda: torchrun.poll() is not None and not marked(mark), 60)
            assert torchrun.returncode != 0
        finally:
            for pid in marked(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            torchrun.wait(10)


def environ(pid):
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited for {seconds} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, warm, write_config):
    """A finished run of one round that has been measured."""
    from fedgan.experiment import run

    folder = tmp_path_factory.mktemp("measured") / "run"
    run(write_config(folder, {"federation.rounds": 1, "evaluate.measures": ["fidelity"]}))
    return folder


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(
    ("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)]
)
def test_a_stop_while_measuring(start, tmp_path, measured, world, number, name, code):
    """What is finished is kept, and the line says what is not; that can be measured later."""
    folder, hangs = tmp_path / "run", tmp_path / "hangs"
    shutil.copytree(measured, folder)
    before = json.loads((folder / "evaluation.json").read_text())

    def hang():
        from fedgan.metrics.memory import Memory

        def sleep(*_):
            hangs.touch()
            while True:
                time.sleep(0.1)

        Memory.measure = sleep

    words = ("evaluate", folder, "--only=coverage,memory,fidelity", f"--cluster.devices={world}")
    child = start(*words, before=hang)
    child.wait_for(hangs.exists)
    time.sleep(0.3)
    os.kill(child.pid, number)
    assert child.end() == code, child.says()
    (line,) = child.says().splitlines()
    assert line == (
        f"fedgan: stopped by {name}; {folder}/evaluation.json has what was finished: coverage; the "
        "same command measures all anew, with --only=memory,fidelity what is missing"
    )
    after = json.loads((folder / "evaluation.json").read_text())
    assert after["final"]["measures"] == ["fidelity", "coverage"]
    assert before["figures"].items() < after["figures"].items()
    assert [*folder.glob(".*")] == []
    again = start("evaluate", folder, "--only=memory,fidelity")
    assert again.end() == 0, again.says()
    whole = json.loads((folder / "evaluation.json").read_text())
    assert set(whole["final"]["measures"]) == {"coverage", "memory", "fidelity"}
    assert "earlier" not in whole
    assert after["figures"].items() < whole["figures"].items()


def test_a_stop_before_any_measure(start, tmp_path, measured):
    folder, hangs = tmp_path / "run", tmp_path / "hangs"
    shutil.copytree(measured, folder)
    before = (folder / "evaluation.json").read_bytes()

    def hang():
        from fedgan.metrics.fidelity import Fidelity

        def sleep(*_):
            hangs.touch()
            time.sleep(600)

        Fidelity.prepare = sleep

    child = start("evaluate", folder, before=hang)
    child.wait_for(hangs.exists)
    os.kill(child.pid, signal.SIGINT)
    assert child.end() == 130, child.says()
    assert child.says() == (
        "fedgan: stopped by Ctrl-C; no measure was finished, and "
        f"{folder}/evaluation.json is as it was\n"
    )
    assert (folder / "evaluation.json").read_bytes() == before
