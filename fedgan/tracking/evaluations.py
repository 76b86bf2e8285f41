"""What looks at the generator have found, as files: figures and details, and pictures."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgan.cache import write_atomically, write_json
from fedgan.tracking.base import Observer, RoundRecord, RunInfo
from fedgan.tracking.records import Table, round_first

EVALUATION = "evaluation.json"
FOLDER = "evaluations"
TABLE = "evaluations.csv"


class Evaluations(Observer):
    """Writes evaluations/round_0010.json, and pictures beside it, for each look of
    `evaluate.rounds`, and the figures of all of them to evaluations.csv; and watch_0010.json, in
    the same form, for each look on the way, whose figures metrics.csv has. After a resume it first
    drops those of the rounds that are played again."""

    def on_start(self, info: RunInfo) -> None:
        self._folder = info.run_dir / FOLDER
        for path in [*self._folder.glob("round_*"), *self._folder.glob("watch_*")]:
            number = path.name.partition("_")[2][:4]
            if number.isdigit() and int(number) >= info.first_round:
                path.unlink()
        self._table = Table(info.run_dir / TABLE, round_first)
        self._table.keep(lambda row: int(row["round"]) < info.first_round)

    def on_round(self, record: RoundRecord) -> None:
        if record.evaluation:
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"watch_{record.round:04}.json"
            found = {"round": record.round, **record.evaluation}
            write_evaluation(path, found, record.pictures)

    def on_evaluation(
        self, round: int, evaluation: dict[str, Any], pictures: dict[str, Tensor]
    ) -> None:
        self._folder.mkdir(exist_ok=True)
        self._table.append([{"round": round, **evaluation["figures"]}])
        # last: where this file is, the look is whole
        write_evaluation(self._folder / looked_at(round), {"round": round, **evaluation}, pictures)


def looked_at(round: int) -> str:
    """The file of a full look after a round, below `FOLDER`."""
    return f"round_{round:04}.json"


def read_evaluation(path: Path) -> dict[str, Any]:
    """What an evaluation file holds; nothing where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "final" in found else {}


def together(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new findings, and what an evaluation file has held: other measures of the same images
    with the same settings stand beside them, whatever is of others under `earlier`, newest first.

    >>> old = {"round": 1, "final": {"measures": ["a"]}, "names": {"a": ["x"]}, "figures": {"x": 1}}
    >>> new = {"round": 1, "final": {"measures": ["b"]}, "names": {"b": ["y"]}, "figures": {"y": 2}}
    >>> together(old, new)["figures"]
    {'x': 1, 'y': 2}
    >>> together(old, {**new, "round": 2})["earlier"][0]["figures"]
    {'x': 1}
    """
    if not old:
        return new
    before = [{k: v for k, v in old.items() if k != "earlier"}, *old.get("earlier", [])]
    others = [one for one in before if _subject(one) != _subject(new)]
    for one in before:
        if one not in others:
            new = _beside(one, new)
    return {**new, "earlier": others} if others else new


def _beside(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new findings, and of the old ones those of measures that were not taken anew."""
    taken = new["final"]["measures"]
    kept = [name for name in old["final"]["measures"] if name not in taken]
    figures = {
        name: old["figures"][name] for measure in kept for name in old["names"].get(measure, [])
    }

    def own(key: str) -> dict[str, Any]:
        before, now = old.get(key, {}), new.get(key, {})
        return {**{measure: before[measure] for measure in kept if measure in before}, **now}

    return {
        **new,
        "figures": figures | new["figures"],
        **{key: own(key) for key in ("names", "details", "failed", "pictures")},
        "final": {**new["final"], "measures": kept + taken},
    }


def _subject(told: dict[str, Any]) -> str:
    """What two evaluations must have in common to stand beside each other: images and settings."""
    settings = {k: v for k, v in told.get("final", {}).items() if k != "measures"}
    keys = ("round", "generator_sha256", "images_digest")
    return json.dumps([settings, *(told.get(key) for key in keys)], default=str, sort_keys=True)


def write_evaluation(
    path: Path,
    content: dict[str, Any],
    pictures: dict[str, Tensor],
) -> None:
    """Writes `content`, whose `pictures` names those of each measure, to `path`, and the pictures
    beside it; what is there of other measures or
    other images is kept, see `together`.

    Raises `UserError` where it cannot be written.
    """
    mark = hashlib.sha256(_subject(content).encode()).hexdigest()[:6]
    files = {name: f"{path.stem}_{mark}_{name}.png" for name in pictures}
    for name, picture in pictures.items():
        write_atomically(path.with_name(files[name]), partial(write_png, picture))
    shown = content.get("pictures", {})
    own = {measure: [files[name] for name in names] for measure, names in shown.items() if names}
    write_json(path, together(read_evaluation(path), {**content, "pictures": own}))


def write_png(picture: Tensor, path: Path) -> None:
    from torchvision.io import encode_png

    path.write_bytes(encode_png(picture.to(torch.uint8)).numpy().tobytes())
