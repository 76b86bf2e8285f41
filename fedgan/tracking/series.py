"""What loggers chart: a round's figures by name, and every client over all rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from fedgan.tracking.base import RoundRecord
from fedgan.tracking.pictures import MALICIOUS

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PER_CLIENT = ("d_loss", "g_loss", "weight", "score")
"""Columns of clients.csv that are charted in every round; critic_bias where there is one."""
CHARTED = {
    "g_loss": "generator loss of every client",
    "d_loss": "discriminator loss of every client",
    "score": "score of every client by the defence",
    "critic_bias": "bias of every client's discriminator to the trigger, in std",
}
MOST_ROWS = 9000
"""Of one chart or table: W&B cuts off what is over 10,000."""
Row = dict[str, Any]


def scalars(record: RoundRecord) -> dict[str, float]:
    """All numbers of a round by name: its row of metrics.csv, `g_loss/client 0` and so on for each
    client, and `detection/malicious_flagged` and so on; losses and scores may be NaN."""
    return _named(record.scalars(), record.client_rows())


def scalars_of_tables(metrics: Sequence[Row], clients: Sequence[Row]) -> dict[int, dict[str, Any]]:
    """The same of each round in metrics.csv and clients.csv, as `read_table` gives them.

    >>> scalars_of_tables([{"round": "2", "d_loss": "0.5", "fd_x": ""}], [])[2]["d_loss"]
    0.5
    """
    own: dict[int, list[Row]] = {}
    for row in clients:
        own.setdefault(int(row["round"]), []).append({k: parsed(v) for k, v in row.items()})
    return {
        int(row["round"]): _named(
            {key: parsed(text) for key, text in row.items() if text != ""},
            own.get(int(row["round"]), []),
        )
        for row in metrics
    }


def parsed(text: str) -> Any:
    """A cell of a CSV file.

    >>> parsed("True"), parsed("3"), parsed("3.5"), parsed("nan"), parsed("ok")
    (True, 3, 3.5, nan, 'ok')
    """
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text


def _named(metrics: dict[str, float], rows: Sequence[Row]) -> dict[str, float]:
    found = dict(metrics)
    for row in rows:
        for key in (*PER_CLIENT, "critic_bias"):
            if row.get(key, "") != "":
                found[f"{key}/client {row['client']}"] = row[key]
    return found | detection_scalars(rows)


def detection_scalars(rows: Sequence[Row]) -> dict[str, float]:
    """Who was flagged and who lost weight in one round: for the malicious and the benign clients
    whose status is `ok`, how many there are, how many were flagged and how many suppressed, and
    their share of the aggregate beside FedAvg's, in [0, 1].

    >>> row = {"status": "ok", "malicious": True, "flagged": True, "suppressed": True}
    >>> found = detection_scalars([{**row, "weight": 0.1, "fair_weight": 0.5}])
    >>> found["detection/malicious_weight"]
    0.1
    """
    found: dict[str, float] = {}
    for who, bad in (("malicious", True), ("benign", False)):
        own = [row for row in rows if row["status"] == "ok" and row["malicious"] is bad]
        found |= {
            f"detection/{who}_clients": len(own),
            f"detection/{who}_flagged": sum(row["flagged"] for row in own),
            f"detection/{who}_suppressed": sum(row["suppressed"] for row in own),
            f"detection/{who}_weight": sum(row["weight"] for row in own),
            f"detection/{who}_fair_weight": sum(row["fair_weight"] for row in own),
        }
    return found


class Lines(NamedTuple):
    """One line a client: `rounds[i]` and `values[i]` belong to `names[i]`."""

    names: list[str]
    rounds: list[list[int]]
    values: list[list[float]]


def lines(rows: Sequence[Row], key: str, malicious: frozenset[int]) -> Lines:
    """A column of clients.csv over the rounds, a line a client; cells without a finite number are
    left out, and so are clients without any."""
    found = Lines([], [], [])
    for client in sorted({int(row["client"]) for row in rows}):
        own = [row for row in rows if int(row["client"]) == client]
        points = [(int(row["round"]), float(row.get(key) or "nan")) for row in own]
        points = [point for point in points if math.isfinite(point[1])]
        if points:
            found.names.append(name(client, malicious))
            found.rounds.append([round for round, _ in points])
            found.values.append([value for _, value in points])
    return found


def name(client: int, malicious: frozenset[int]) -> str:
    """What a client is called in charts.

    >>> name(3, frozenset({3}))
    'client 3 (malicious)'
    """
    return f"client {client} (malicious)" if client in malicious else f"client {client}"


def thinned(rows: Sequence[Row], most: int = MOST_ROWS) -> list[Row]:
    """The rows of every k-th round and of the last, with the smallest k that leaves at most `most`.

    >>> rows = [{"round": r, "client": c} for r in range(1, 101) for c in range(4)]
    >>> few = thinned(rows, 100)
    >>> len(few), few[0]["round"], few[-1]["round"]
    (100, 4, 100)
    """
    rounds = sorted({int(row["round"]) for row in rows})
    for every in range(1, len(rounds) + 1):
        kept = set(rounds[::-1][::every])  # counted from the last
        if len(rows) * len(kept) <= most * len(rounds):
            return [row for row in rows if int(row["round"]) in kept]
    return [row for row in rows if int(row["round"]) == rounds[-1]] if rounds else []


def weights_picture(rows: Sequence[Row], malicious: frozenset[int]) -> Picture:
    """Every client's weight in the aggregate over the rounds, stacked: the attackers' below, red.

    A round in which a client had no say counts as 0.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from PIL import Image

    rounds = sorted({int(row["round"]) for row in rows})
    weight = {(int(row["round"]), int(row["client"])): float(row["weight"]) for row in rows}
    clients = sorted({client for _, client in weight}, key=lambda c: (c not in malicious, c))
    benign = [client for client in clients if client not in malicious]
    shades = colormaps["Blues"]
    colours: list[Any] = [MALICIOUS] * (len(clients) - len(benign))
    colours += [shades(0.85 - 0.6 * i / max(1, len(benign) - 1)) for i in range(len(benign))]
    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.subplots()
    stacks = [[weight.get((round, client), 0.0) for round in rounds] for client in clients]
    names = [name(client, malicious) for client in clients]
    # A line alone is no area: a single round is drawn as wide as two.
    x = rounds if len(rounds) > 1 else [rounds[0] - 0.5, rounds[0] + 0.5]
    y = stacks if len(rounds) > 1 else [stack * 2 for stack in stacks]
    panel.stackplot(x, y, labels=names, colors=colours, edgecolor="white", linewidth=0.4)
    panel.set(xlabel="round", ylabel="weight in the aggregate", ylim=(0, None), xlim=(x[0], x[-1]))
    panel.spines[["top", "right"]].set_visible(False)
    if len(clients) <= 12:
        handles, labels = panel.get_legend_handles_labels()
        beside = (1, 1)
        panel.legend(
            handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=beside, frameon=False
        )
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    return Image.open(drawn)
