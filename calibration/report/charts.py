# SPDX-License-Identifier: Apache-2.0
"""The report's figures as SVG. Colours are names of the page's palette, so that the page can show them on dark, too."""

from __future__ import annotations

import io
import itertools
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastmmoe.calibration.report.analysis import CLAIMED_QUALITY, CLAIMED_REDUCTION, EQUALISED
from fastmmoe.calibration.report.results import Comparison, Point, Report
from fastmmoe.calibration.report.settings import FULL, LABELS, PRUNING, REDUCTION, VARIANTS, Setting
from fastmmoe.runtime.method.policy import FASTMMOE, FASTV, RANDOM, SPARSEVLM

INK, MUTED, GRID, PAPER = "#23272b", "#5e666e", "#d9dde1", "#fefefe"
# Okabe and Ito's palette, told apart by readers with any colour vision; markers differ as well.
COLORS = {
    FULL: "#23272c",
    FASTMMOE: "#0072b2",
    REDUCTION: "#3a9bdc",
    PRUNING: "#d98b00",
    RANDOM: "#7a7f85",
    FASTV: "#009e73",
    SPARSEVLM: "#c2609a",
}
DEVICE_COLORS = tuple(COLORS[v] for v in (FASTMMOE, PRUNING, FASTV, SPARSEVLM, REDUCTION, RANDOM))
MOST_LINEAR = 12
"""Greatest over least time above which the axis is logarithmic."""
MARKERS = {FULL: "*", FASTMMOE: "o", REDUCTION: "D", PRUNING: "s", RANDOM: "x", FASTV: "^", SPARSEVLM: "v"}
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--paper",
    **{color: f"--{variant}" for variant, color in COLORS.items()},
}
"""Colours of the figures and the variables of the page's style sheet that take their place in it."""

WIDTH, NARROW = 6.6, 3.9
"""Inches of a figure, and of one that a phone shows without shrinking its letters."""
_HEIGHT = 4.3
MOST_LETTERS = 34
"""Of a line in a narrow figure."""
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def draw_charts(report: Report, width: float = WIDTH) -> dict[str, str]:
    """SVG texts by name, the same bytes for the same report and version of matplotlib.

    Args:
        width: in inches.
    """
    charts: dict[str, Callable[[Any], None]] = {
        "accuracy-flops": lambda figure: _draw_tradeoff(figure, report, by_time=False),
        "accuracy-latency": lambda figure: _draw_tradeoff(figure, report, by_time=True),
        **({"devices": lambda figure: _draw_devices(figure, report)} if report.devices else {}),
        "equal-flops": lambda figure: _draw_differences(figure, report.comparisons),
        "kinds": lambda figure: _draw_kinds(figure, report),
    }
    return {name: _render(name, draw, width) for name, draw in charts.items()}


def for_page(name: str, svg: str) -> str:
    """A figure as it stands in the page: without an XML header, its ids its own, its colours the page's variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    # The page says how wide it is.
    return re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1))


def _render(name: str, draw: Callable[[Any], None], width: float) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": f"fastmmoe-{name}",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.facecolor": PAPER,
        "figure.facecolor": PAPER,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "grid.color": GRID,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width, _HEIGHT), layout="constrained")
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=NO_METADATA)
    return file.getvalue()


def _saved(point: Point, by_time: bool) -> float:
    return 100 * (1 - point.prefill_share if by_time else point.reduction)


def _draw_tradeoff(figure: Any, report: Report, *, by_time: bool) -> None:
    """Accuracy kept against what is saved; thin bars are the 95% intervals, rings the Pareto front."""
    axes = figure.subplots()
    full = report.point(Setting(FULL))
    ends: list[tuple[str, float, float]] = []
    for variant in VARIANTS:
        own = [point for point in report.points if point.setting.variant == variant and variant != FULL]
        if not own:
            continue
        own.sort(key=lambda point: -point.setting.retention)
        _plot_curve(axes, variant, own if variant == REDUCTION else [full, *own], by_time)
        last = own[-1]
        ends.append((variant, _saved(last, by_time), 100 * last.quality.value))
    on_front = [p for p in report.points if (p.on_latency_front if by_time else p.on_flops_front)]
    axes.plot(
        [_saved(p, by_time) for p in on_front],
        [100 * p.quality.value for p in on_front],
        "o",
        markersize=9,
        markerfacecolor="none",
        markeredgecolor=INK,
        markeredgewidth=0.8,
        zorder=6,
    )
    axes.axhline(100 * CLAIMED_QUALITY, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    left, right = axes.get_xlim()
    note: dict[str, Any] = {"color": MUTED, "fontsize": 8.5}
    axes.text(left, 100 * CLAIMED_QUALITY, f" {CLAIMED_QUALITY:.1%} kept", va="top", **note)
    if not by_time:
        axes.axvline(100 * CLAIMED_REDUCTION, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.text(
            100 * CLAIMED_REDUCTION,
            axes.get_ylim()[0],
            f"{CLAIMED_REDUCTION:.0%} saved ",
            ha="right",
            va="bottom",
            **note,
        )
    _label_ends(axes, ends, right)
    what = "measured prefill time" if by_time else "counted prefill FLOPs"
    axes.set_xlabel(_fitting(figure, f"{what} saved (% of the full model's)"))
    axes.set_ylabel("accuracy kept (% of the full model's)")
    _tidy(axes)


def _plot_curve(axes: Any, variant: str, points: Sequence[Point], by_time: bool) -> None:
    quality = 100 * np.array([[p.quality.value, p.quality.low, p.quality.high] for p in points])
    axes.errorbar(
        [_saved(point, by_time) for point in points],
        quality[:, 0],
        # An interval need not hold its value where nearly all questions agree.
        yerr=np.maximum(0, [quality[:, 0] - quality[:, 1], quality[:, 2] - quality[:, 0]]),
        color=COLORS[variant],
        marker=MARKERS[variant],
        markersize=5.5 if variant == FASTMMOE else 4.2,
        linewidth=2.2 if variant == FASTMMOE else 1.3,
        elinewidth=0.9,
        zorder=5 if variant == FASTMMOE else 3,
    )


def _label_ends(axes: Any, ends: Sequence[tuple[str, float, float]], right: float) -> None:
    """Names beside the right edge, in the order of the curves' ends, with a thin line to each end."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.062
    ordered = sorted(ends, key=lambda end: end[2])
    places: list[float] = []
    for _, _, y in ordered:
        places.append(max(y, places[-1] + gap) if places else max(y, low + gap / 2))
    excess = max(0.0, places[-1] - high) if places else 0.0
    for (variant, x, y), place in zip(ordered, places, strict=True):
        axes.annotate(
            LABELS[variant],
            (x, y),
            (right + 0.03 * (right - axes.get_xlim()[0]), place - excess),
            color=COLORS[variant],
            fontsize=9.5,
            weight="bold" if variant == FASTMMOE else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": COLORS[variant], "linewidth": 0.5, "shrinkA": 2, "shrinkB": 4},
        )
    axes.set_xlim(right=right)


def _draw_devices(figure: Any, report: Report) -> None:
    """Accuracy kept against the first token's time on each machine: filled with the vision tower, hollow without."""
    axes = figure.subplots()
    figure.set_figheight(_HEIGHT + 0.22 * len(report.devices))
    for color, device in zip(itertools.cycle(DEVICE_COLORS), report.devices):
        quality = [100 * report.point(time.setting).quality.value for time in device.times]
        ours: dict[str, Any] = {"color": color, "marker": "o", "markersize": 5.5}
        with_vision = [time.first_token_ms for time in device.times]
        axes.plot(
            with_vision, quality, linewidth=1.8, label=_fitting(figure, f"{device.name}, {device.provider}"), **ours
        )
        without = [time.without_vision_ms for time in device.times]
        axes.plot(without, quality, linewidth=1.2, linestyle=(0, (4, 2)), markerfacecolor=PAPER, **ours)
    left, right = axes.get_xlim()
    if right > MOST_LINEAR * max(left, 1e-3):
        _scale_by_factors(axes)
    axes.set_xlabel("first token after (ms); dashed: without vision")
    axes.set_ylabel("accuracy kept (% of the full model's)")
    figure.legend(loc="outside upper center", ncols=1, frameon=False, fontsize=9)
    _tidy(axes)


def _draw_differences(figure: Any, comparisons: Sequence[Comparison]) -> None:
    """Accuracy of fastmmoe minus that of each other method at equal FLOPs, with intervals."""
    ours = list(dict.fromkeys(row.ours for row in comparisons))
    figure.set_figheight(1.2 + 0.62 * max(len(ours), 1))
    axes = figure.subplots()
    for number, variant in enumerate(EQUALISED):
        rows = [r for r in comparisons if r.variant == variant and r.difference is not None]
        bounds = [(r, r.difference) for r in rows if r.difference is not None]
        values = 100 * np.array([[d.value, d.low, d.high] for _, d in bounds]).reshape(-1, 3)
        axes.errorbar(
            values[:, 0],
            [ours.index(r.ours) + 0.17 * (number - 1.5) for r, _ in bounds],
            xerr=np.maximum(0, [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]),
            color=COLORS[variant],
            marker=MARKERS[variant],
            markersize=5,
            linestyle="none",
            elinewidth=1.2,
            label=LABELS[variant],
        )
    axes.axvline(0, color=INK, linewidth=0.9)
    saved = {row.ours: row.ours_reduction for row in comparisons}
    axes.set_yticks(range(len(ours)), [f"R = {s.retention:g}\n{saved[s]:.0%} saved" for s in ours], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel(_fitting(figure, "accuracy of FastMMoE minus that of the other (percentage points)"))
    _legend(figure, len(EQUALISED))
    _tidy(axes)


def _draw_kinds(figure: Any, report: Report) -> None:
    """Accuracy by kind of question where all cost what the claimed setting costs."""
    figure.set_figheight(1.3 + 0.75 * max(len(report.kinds), 1))
    axes = figure.subplots()
    spread = np.linspace(-0.32, 0.32, len(report.compared)) if len(report.compared) > 1 else [0.0]
    for column, (setting, offset) in enumerate(zip(report.compared, spread, strict=True)):
        cells = [row.accuracies[column] for row in report.kinds]
        values = 100 * np.array([[c.value, c.low, c.high] for c in cells]).reshape(-1, 3)
        axes.errorbar(
            values[:, 0],
            np.arange(len(cells)) + offset,
            xerr=np.maximum(0, [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]),
            color=COLORS[setting.variant],
            marker=MARKERS[setting.variant],
            markersize=5,
            linestyle="none",
            elinewidth=1,
            label=LABELS[setting.variant],
        )
    axes.set_yticks(range(len(report.kinds)), [row.kind or "no kind" for row in report.kinds])
    axes.invert_yaxis()
    axes.set_xlabel("right answers (%)")
    _legend(figure, 4)
    _tidy(axes)


def _fitting(figure: Any, text: str) -> str:
    """The text in lines that a figure as narrow as a phone holds."""
    return text if figure.get_figwidth() >= WIDTH else textwrap.fill(text, MOST_LETTERS)


def _scale_by_factors(axes: Any) -> None:
    """A logarithmic axis with numbers as people write them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Any, columns: int) -> None:
    fitting = columns if figure.get_figwidth() >= WIDTH else 2
    figure.legend(loc="outside upper center", ncols=fitting, frameon=False, fontsize=9)


def _tidy(axes: Any) -> None:
    axes.grid(linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
