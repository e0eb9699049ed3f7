# SPDX-License-Identifier: Apache-2.0
"""Writes report.html, which needs nothing but itself, and report.md with its figures, and report.json."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

from fastmmoe.calibration.measure.bootstrap import Interval
from fastmmoe.calibration.report.charts import NARROW, draw_charts, for_page
from fastmmoe.calibration.report.findings import describe
from fastmmoe.calibration.report.maps import SceneMap
from fastmmoe.calibration.report.results import Point, Report
from fastmmoe.calibration.report.settings import LABELS, Setting
from fastmmoe.runtime.files import write_atomically

HTML, MARKDOWN, NUMBERS = "report.html", "report.md", "report.json"


def write_pages(out: Path, report: Report, maps: Sequence[SceneMap]) -> None:
    """Write the report's files into a directory, which is made if needed; each appears complete or not at all."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fastmmoe.calibration.report"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "points": points, "interval": interval, "range": bounds}
    charts, narrow = draw_charts(report), draw_charts(report, NARROW)
    pictures = {f"map-{i}-{part}.png": _png(getattr(m, part)) for i, m in enumerate(maps, 1) for part in _PARTS}
    context = _context(report, maps)
    html = environment.get_template(f"{HTML}.jinja").render(
        **context,
        charts={name: for_page(name, svg) for name, svg in charts.items()},
        narrow={name: for_page(f"{name}-narrow", svg) for name, svg in narrow.items()},
        pictures={name: f"data:image/png;base64,{base64.b64encode(png).decode()}" for name, png in pictures.items()},
    )
    markdown = environment.get_template(f"{MARKDOWN}.jinja").render(**context)
    files = {f"{name}.svg": svg.encode() for name, svg in charts.items()} | pictures
    files |= {HTML: html.encode(), MARKDOWN: markdown.encode()}
    # Infinite or undefined numbers become null.
    files[NUMBERS] = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    for name, data in files.items():
        write_atomically(out / name, data)


_PARTS = ("survivors", "similarity")


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage; a dash where it is undefined."""
    return "–" if math.isnan(value) else f"{value:.{digits}%}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return "–" if math.isnan(value) else f"{100 * value:+.2f}".replace("-", "−")


def interval(value: Interval, digits: int = 1) -> str:
    """A share with its interval."""
    return f"{percent(value.value, digits)} ({bounds(value, digits)})"


def bounds(value: Interval, digits: int = 1) -> str:
    """The interval of a share alone."""
    if math.isnan(value.low):
        return "no interval"
    return f"{100 * value.low:.{digits}f} to {100 * value.high:.{digits}f}"


def _context(report: Report, maps: Sequence[SceneMap]) -> dict[str, Any]:
    def label(setting: Setting) -> str:
        return LABELS[setting.variant]

    front = sorted((p for p in report.points if p.on_flops_front), key=lambda p: p.reduction)
    return {
        "report": report,
        "origin": report.origin,
        "words": describe(report),
        "labels": LABELS,
        "label": label,
        "options": _options_text,
        "front": front,
        "recommended": None if report.recommended is None else report.point(report.recommended),
        "claimed": None if report.claimed is None else report.point(report.claimed),
        "maps": maps,
    }


def _options_text(point: Point) -> str:
    """The setting as arguments of `VLM.generate`."""
    # Texts as ruff formats them.
    values = {name: f'"{value}"' if isinstance(value, str) else value for name, value in point.options.items()}
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    # Few colours tell the pictures' cells apart just as well, at a third of the size.
    image.quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()
