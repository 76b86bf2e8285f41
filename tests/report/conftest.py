"""Run directories that were never run, and a headless Chromium to look at pages with.

Chromium is driven by the DevTools protocol over a pipe: no port, and nothing to install beside it.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgan import config
from fedgan.runs import NOBODY, Labels
from fedgan.settings import Experiment
from fedgan.tracking.pictures import png_info, sample_grid

CLASSES = ("dark & <dim>", "light")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--disable-quic", "--mute-audio", "--hide-scrollbars"),
    # Whatever a page asks for outside this machine fails, and is seen as a request.
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
PATIENCE = 60  # seconds


class Browser:
    """One page at a time; `errors` and `requests` are those of the page that was opened last."""

    def __init__(self, profile: Path) -> None:
        to_browser, ours_out = os.pipe()
        ours_in, from_browser = os.pipe()
        # The browser reads from descriptor 3 and writes to 4.
        command = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        args = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, "chromium", *args, "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._out, self._in = ours_out, ours_in
        self._buffer, self._number, self._session = b"", 0, None
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Opens a file and waits until it has loaded."""
        self.resize(width, height, dark)
        self.errors.clear()
        self.requests.clear()
        self._loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        self._until(lambda: self._loaded)

    def resize(self, width: int, height: int = 900, dark: bool = False) -> None:
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        told = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def pdf(self, path: Path) -> None:
        told = self.call(
            "Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69
        )
        path.write_bytes(base64.b64decode(told["data"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        left = memoryview(json.dumps(message).encode() + b"\0")
        while left:
            left = left[os.write(self._out, left) :]
        answer: dict[str, Any] = {}

        def answered() -> bool:
            return bool(answer)

        self._until(answered, number, answer)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def _until(self, done: Any, number: int = 0, answer: dict[str, Any] | None = None) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            message = self._next(end)
            if message.get("id") == number and answer is not None:
                answer.update(message)
            self._note(message.get("method"), message.get("params", {}))

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                raise AssertionError("chromium does not answer")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.errors.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser for all tests of a session."""
    if CHROMIUM is None:
        if os.environ.get("FEDGAN_REQUIRE_BROWSER"):
            pytest.fail("FEDGAN_REQUIRE_BROWSER is set, and there is no chromium")
        pytest.skip("no chromium on this machine")
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Writes a run directory: `make_run(folder, Labels(...), {"fd_domain": 2.0}, rounds=3)`.

    Client 0 of three attacks, if anybody does, is flagged in the last round and loses weight by it.
    The picture of round r is of gray value 40 r.
    """

    def make(
        folder: Path,
        labels: Labels,
        figures: dict[str, float],
        *,
        rounds: int = 3,
        size: int = 16,
        columns: int = 3,
        notes: Sequence[str] = (),
    ) -> Path:
        folder.mkdir(parents=True)
        (folder / "samples").mkdir()
        settings = Experiment(seed=labels.seed, run_dir=str(folder))
        settings.attack.name = "patch" if labels.attack == NOBODY else labels.attack
        settings.attack.poison_rate = float(labels.attack != NOBODY)
        settings.defense.name = labels.defense
        (folder / "config.yaml").write_text(config.dump(settings))
        bad = labels.attack != NOBODY
        clients, metrics = [], []
        for round in range(1, rounds + 1):
            ratio = figures.get("fd_domain", 1.0) / round
            metrics.append({"round": round, "fd_domain": ratio, "fd_domain_ratio": ratio})
            metrics[-1] |= {"presence": figures["presence"]} if "presence" in figures else {}
            for client in range(3):
                flag = bad and client == 0 and round == rounds
                row = {"round": round, "client": client, "d_loss": 0.5, "g_loss": 1.0 + client}
                row |= {"weight": 0.2 if flag else 0.4, "fair_weight": 1 / 3, "flagged": flag}
                row |= {"suppressed": flag, "malicious": bad and client == 0, "status": "ok"}
                clients.append(row)
            gray = torch.full((2, columns, 1, size, size), min(255, 40 * round), dtype=torch.uint8)
            gray[..., 0, 0] = 255
            sheet = sample_grid(gray, CLASSES)
            sheet.save(folder / f"samples/round_{round:04}.png", pnginfo=png_info(sheet))
        _write_table(folder / "metrics.csv", metrics)
        _write_table(folder / "clients.csv", clients)
        (folder / "summary.json").write_text(
            json.dumps(_summary(figures, rounds, bad=bad, notes=notes))
        )
        return folder

    return make


def _summary(
    figures: dict[str, float], rounds: int, *, bad: bool, notes: Sequence[str]
) -> dict[str, Any]:
    told = [
        {
            "client": client,
            "malicious": bad and client == 0,
            "n_images": 20,
            "images_by_class": [5 + 5 * client, 15 - 5 * client],
            "rounds": rounds,
            "flagged_rounds": [rounds] if bad and client == 0 else [],
            "suppressed_rounds": [rounds] if bad and client == 0 else [],
            "final_weight": 0.4,
            "fair_weight": 1 / 3,
        }
        for client in range(3)
    ]
    seen = {"malicious_client_rounds": rounds if bad else 0, "malicious_flagged": int(bad)}
    seen |= {"benign_client_rounds": 2 * rounds, "benign_flagged": 0}
    return {
        "figures": figures,
        "details": {"presence": {"notes": []}},
        "final": {"samples": 100, "encoders": [{"name": "domain"}], "measures": []},
        "detection": {**seen, "words": ""},
        "classes": list(CLASSES),
        "clients": told,
        "notes": list(notes),
        "rounds": rounds,
        "images_per_second": 100.0,
        "generator_sha256": "0" * 64,
        "versions": {"fedgan": "0"},
        "device": "CPU",
    }


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="session")
def made_grid(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Path]) -> Path:
    """A grid directory of four arms and two seeds, one cell of which has not finished."""
    folder = tmp_path_factory.mktemp("grids") / "small & <odd>"
    arms = {
        ("none", "none"): (10.0, 0.0),
        ("patch", "none"): (15.0, 0.5),
        ("patch", "feddetect"): (12.0, 0.25),
        ("patch", "median"): (14.0, 0.0),
    }
    cells = []
    for seed in (1, 2):
        for (attack, defense), (distance, presence) in arms.items():
            name = f"{attack}__{defense}__seed-{seed}"
            done = (attack, defense, seed) != ("patch", "median", 2)
            labels = Labels("blobs", attack, defense, seed)
            cells.append(
                {
                    "name": name,
                    "labels": labels._asdict(),
                    "run_dir": f"cells/{name}",
                    "state": "done" if done else "failed",
                }
            )
            if done:
                figures = {"fd_domain": distance + 0.1 * seed, "fd_domain_floor": 1.0}
                figures |= {"fd_domain_ratio": distance + 0.1 * seed, "presence": presence}
                figures |= {"presence_low": presence / 2, "presence_high": presence + 0.1}
                make_run(folder / "cells" / name, labels, figures, notes=["few images"])
    (folder / "grid.json").write_text(json.dumps(cells))
    (folder / "grid.yaml").write_text("base: smoke.yaml\n")
    return folder
