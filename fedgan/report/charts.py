"""Charts as SVG that takes colours and letters from the page: it follows light, dark and print."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedgan.data.sheets import SHADES
from fedgan.report.scenes import Arm
from fedgan.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {  # what is drawn with, and what the page's style sheet calls it
    "#010101": "var(--ink)",
    "#010102": "var(--quiet)",
    "#010103": "var(--rule)",
    "#010104": "var(--card)",
    "#020200": "var(--bad)",
    "#020201": "var(--benign)",
    **{f"#0203{i:02x}": f"var(--arm{i})" for i in range(6)},
}
INK, QUIET, RULE, CARD, BAD, BENIGN, *ARMS = COLOURS
MARKERS = ("", "^", "o", "s", "D", "v")
"""Of arms, in the order of `ARMS`: clean has none, undefended the triangle of the malicious."""
POINTS = 120
"""Most points of a line; of longer runs every k-th round is drawn, and every flag."""
ALL_POINTS = 6000
"""Most points of all lines of a chart, as far as each can do with `FEWEST`."""
FEWEST = 20
LOG_FROM = 30
"""Ratio of the largest to the median absolute value from which an axis is logarithmic."""
RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
    "axes.edgecolor": RULE,
    "axes.labelcolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
    "path.simplify_threshold": 0.3,
}


def client_chart(run: Run, key: str, name: str) -> str:
    """A line a client of clients.csv's column `key` over rounds; `name` is unique on the page.

    Malicious clients have thick lines with triangles, benign ones thin lines. Where a client was
    flagged there is a ring, filled where the flag cost it weight. For `weight`, FedAvg's weights
    are dotted beside it.
    """
    rows = [row for row in run.clients if isinstance(row.get(key), float)]
    numbers = sorted({int(row["client"]) for row in rows})
    bad = malicious(run)
    most = max(FEWEST, min(POINTS, ALL_POINTS // max(1, len(numbers))))
    with _chart(name) as (axes, svg):
        for number in sorted(numbers, key=lambda n: n in bad):  # the malicious on top
            own = [row for row in rows if int(row["client"]) == number]
            _draw_client(axes, own, key, number in bad, f"client {number}", most)
        if key == "weight":
            _draw_fair(axes, rows, numbers, most)
            axes.set_ylim(bottom=0)
        elif key == "critic_bias":
            axes.axhline(0, color=QUIET, lw=0.8, ls=":")
        else:
            _maybe_log(axes, [row[key] for row in rows])
        _over_rounds(axes)
    return svg()


def malicious(run: Run) -> frozenset[int]:
    """Clients that attack in the run."""
    return frozenset(c["client"] for c in run.summary["clients"] if c["malicious"])


def arms_chart(arms: Sequence[Arm], key: str, name: str, *, share: bool = False) -> str:
    """A line an arm of metrics.csv's column `key` over rounds: the mean over seeds, and a band from
    the smallest to the largest where there are several. `share` sets the axis from 0 to 1."""
    with _chart(name) as (axes, svg):
        values: list[float] = []
        for position, arm in zip(positions(arms), arms, strict=True):
            by_round: dict[int, list[float]] = {}
            for run in arm.runs:
                for row in run.metrics:
                    if isinstance(row.get(key), float) and math.isfinite(row[key]):
                        by_round.setdefault(int(row["round"]), []).append(row[key])
            whole = {r: v for r, v in by_round.items() if len(v) == len(arm.runs)}
            x = sorted(whole)
            mean = [sum(whole[r]) / len(whole[r]) for r in x]
            values += mean
            colour, marker = ARMS[position], MARKERS[position]
            (line,) = axes.plot(
                x,
                mean,
                color=colour,
                lw=1.6,
                marker=marker or _dot(x),
                ms=4,
                ls="-" if marker else "--",
            )
            line.set_gid(f"title:{arm.title}")
            if len(arm.runs) > 1:
                ends = [min(whole[r]) for r in x], [max(whole[r]) for r in x]
                axes.fill_between(x, *ends, color=colour, alpha=0.14, lw=0)
        if share:
            axes.set_ylim(-0.02, 1.02)
        else:
            _maybe_log(axes, values, LOG_FROM / 10)
        _over_rounds(axes)
    return svg()


def positions(arms: Sequence[Arm]) -> list[int]:
    """Place of each arm in `ARMS` and `MARKERS`: 0 clean, 1 undefended, the others from 2 on."""
    others = iter([2 + i % (len(ARMS) - 2) for i in range(len(arms))])
    fixed = {"clean": 0, "attacked": 1}
    return [fixed[arm.kind] if arm.kind in fixed else next(others) for arm in arms]


def partition_chart(run: Run, name: str) -> str | None:
    """Images of each class that each client holds; None where the run has not written that down."""
    clients, classes = run.summary["clients"], run.summary.get("classes")
    if not classes or any("images_by_class" not in client for client in clients):
        return None
    bad = malicious(run)
    with _chart(name, height=0.7 + 0.26 * max(3, len(clients)), wide=True) as (axes, svg):
        left = [0.0] * len(clients)
        for k, label in enumerate(classes):
            counts = [client["images_by_class"][k] for client in clients]
            colour = SHADES[k % len(SHADES)]
            bars = axes.barh(
                range(len(clients)), counts, left=left, height=0.7, color=colour, edgecolor=CARD
            )
            for bar, client, count in zip(bars, clients, counts, strict=True):
                bar.set_gid(f"title:client {client['client']}: {count} of {label}")
            left = [a + b for a, b in zip(left, counts, strict=True)]
        axes.set_ylim(len(clients) - 0.5, -0.5)
        names = [
            f"▲ client {c['client']}" if c["client"] in bad else f"client {c['client']}"
            for c in clients
        ]
        axes.set_yticks(range(len(clients)), names)
        for client, tick in zip(clients, axes.get_yticklabels(), strict=True):
            tick.set_color(BAD if client["client"] in bad else INK)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=RULE, lw=0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("training images")
    return svg()


def _over_rounds(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def _dot(points: Sequence[Any]) -> str | None:
    """The marker of a line that has none else: of a single point there is no line to see."""
    return "o" if len(points) == 1 else None


def _draw_client(
    axes: Axes, rows: Sequence[dict[str, Any]], key: str, bad: bool, title: str, most: int
) -> None:
    colour = BAD if bad else BENIGN
    step = max(1, math.ceil(len(rows) / most))
    drawn = rows[::step]
    x = [row["round"] for row in drawn]
    # It has no value in most rounds; marks of many clients would be most of the page.
    sparse = key == "critic_bias" and most == POINTS
    (line,) = axes.plot(
        x,
        [row[key] for row in drawn],
        color=colour,
        lw=1.8 if bad else 1.0,
        alpha=1 if bad else 0.75,
        marker=("^" if bad else "o" if sparse else _dot(drawn)),
        markevery=1 if sparse else max(1, len(drawn) // 10),
        ms=4.5 if bad else 2.5,
        zorder=3 if bad else 2,
    )
    line.set_gid(f"title:{title}{', malicious' if bad else ''}")
    if key not in ("g_loss", "d_loss", "g_loss_last"):
        return
    for acted in (False, True):
        flags = [
            r for r in rows if r.get("flagged") is True and (r.get("suppressed") is True) is acted
        ]
        axes.scatter(
            [row["round"] for row in flags],
            [row[key] for row in flags],
            s=26 if bad else 18,
            marker="^" if bad else "o",
            facecolors=INK if acted else CARD,
            edgecolors=INK,
            linewidths=1,
            zorder=4,
        )


def _draw_fair(
    axes: Axes, rows: Sequence[dict[str, Any]], numbers: Sequence[int], most: int
) -> None:
    seen = set()
    for number in numbers:
        own = [row for row in rows if int(row["client"]) == number and "fair_weight" in row]
        step = max(1, math.ceil(len(own) / most))
        y = tuple(row["fair_weight"] for row in own[::step])
        if y in seen:  # one dotted line for all clients of the same size
            continue
        seen.add(y)
        x = [row["round"] for row in own[::step]]
        axes.plot(x, y, color=INK, lw=1, ls=":", marker="_" if len(x) == 1 else None, zorder=5)


def _maybe_log(axes: Axes, values: Sequence[float], from_ratio: float = LOG_FROM) -> None:
    finite = sorted(v for v in values if math.isfinite(v))
    if finite and finite[0] > 0 and finite[-1] > from_ratio * finite[len(finite) // 2]:
        from matplotlib.ticker import LogLocator, NullLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())


@contextmanager
def _chart(
    name: str, *, height: float = 2.5, wide: bool = False
) -> Iterator[tuple[Axes, Callable[[], str]]]:
    """Axes of a bare chart, some 400 pixels wide, and what gives its SVG afterwards."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**RC, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.6 if wide else 4.2, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", color=RULE, lw=0.6)
        axes.tick_params(length=0, labelsize=8)
        axes.set_axisbelow(True)
        yield axes, lambda: _svg(figure, name)


def _svg(figure: Figure, name: str) -> str:
    """The figure's SVG element: themed, with names of its own, and titles that say what is what."""
    import matplotlib

    data = io.StringIO()
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    with matplotlib.rc_context({**RC, "svg.hashsalt": name}):
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    text = data.getvalue()
    text = text[text.index("<svg") :]
    # A style sheet inside would hold for the whole page; the page's has the line joins.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="title:([^"]*)">', r"<g><title>\1</title>", text)
    text = re.sub(r'<path id="title:([^"]*)"([^>]*)/>', r"<path\2><title>\1</title></path>", text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    # Several charts on a page may use the same marker: its name must not be another chart's.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    # A hundredth of a point is enough; matplotlib writes millionths.
    text = re.sub(r'( d="[^"]*"| [xy]="[^"]*")', lambda found: _short(found[1]), text)
    for drawn, called in COLOURS.items():
        text = text.replace(drawn, called)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1; font-family: inherit", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg ", '<svg aria-hidden="true" ', 1)
    return re.sub(r"\n\s*", "\n", text)


def _short(attribute: str) -> str:
    """With two decimals.

    >>> _short(' d="M 44.80024 97.779057"')
    ' d="M 44.80 97.77"'
    """
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute)
