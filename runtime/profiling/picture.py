# SPDX-License-Identifier: Apache-2.0
"""A profile as one picture, an SVG file of its own: a bar for each part, and where the machine's least time ends."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from fastmmoe.runtime.profiling.parts import REST, TITLES
from fastmmoe.runtime.profiling.result import Phase, Profile
from fastmmoe.runtime.profiling.words import OUTSIDE, digits, heading, title

SVG = "http://www.w3.org/2000/svg"
WIDTH, MARGIN, LABELS, VALUES = 760, 20, 160, 190
ROW, BAR, TITLE, GAP = 22, 14, 30, 18
BARS = WIDTH - 2 * MARGIN - LABELS - VALUES
STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#23272b}
.m{fill:#5e666e}.t{font-weight:600;font-size:15px}.p{fill:#fefefe}.b{fill:#0072b2}.r{fill:#8a9097}
.l{stroke:#c2410c;stroke-width:2}.a{stroke:#d9dde1}
@media(prefers-color-scheme:dark){text{fill:#e6e8ea}.m{fill:#a2a9b0}.p{fill:#181b1e}.b{fill:#4aa3df}.r{fill:#767d84}
.l{stroke:#ff9d5c}.a{stroke:#3a4046}}
"""


def draw(profile: Profile) -> str:
    """The picture; the bars of a phase are of one scale, and every phase has its own."""
    lines: list[str] = []
    y = MARGIN + 14
    for number, line in enumerate(heading(profile)):
        lines.append(_text(MARGIN, y, line, "t" if number == 0 else "m"))
        y += 20
    lines += _legend(y)
    y += 10
    for phase in profile.phases:
        y += TITLE
        lines.append(_text(MARGIN, y, title(phase), "t"))
        y += 8
        lines += _bars(phase, y)
        y += ROW * (len(phase.parts) + 1) + GAP
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" role="img">'
    )
    name = f"<title>{escape(next(heading(profile)))}</title>"
    paper = f'<rect class="p" width="{WIDTH}" height="{y}"/>'
    return "\n".join([start, name, f"<style>{STYLE}</style>", paper, *lines, "</svg>\n"])


def _legend(y: int) -> list[str]:
    mark = MARGIN + 6
    return [
        f'<line class="l" x1="{mark}" x2="{mark}" y1="{y - 11}" y2="{y + 3}"/>',
        _text(MARGIN + 18, y, "the least time of the part on this machine, where it is known", "m"),
    ]


def _bars(phase: Phase, top: int) -> Iterator[str]:
    rows = [(TITLES[p.part], p.ms, p.share, p.least_ms, p.part != REST) for p in phase.parts]
    rows.append((OUTSIDE, phase.outside_ms, phase.outside_share, None, False))
    most = max([*(ms for _, ms, *_ in rows), *(least or 0 for *_, least, _ in rows)]) or 1.0
    left = MARGIN + LABELS
    yield f'<line class="a" x1="{left}" x2="{left}" y1="{top}" y2="{top + ROW * len(rows)}"/>'
    for number, (label, ms, share, least, is_model) in enumerate(rows):
        y = top + ROW * number
        base = y + 16
        width = max(0.0, BARS * ms / most)
        yield _text(left - 8, base, label, "", anchor="end")
        kind = "b" if is_model else "r"
        yield f'<rect class="{kind}" x="{left}" y="{y + 4}" width="{width:.1f}" height="{BAR}"/>'
        end = left + width
        if least is not None:
            x = left + BARS * least / most
            yield f'<line class="l" x1="{x:.1f}" x2="{x:.1f}" y1="{y + 2}" y2="{y + 6 + BAR}"/>'
            end = max(end, x)
        reached = "" if least is None else f", least {digits(least)}"
        yield _text(end + 8, base, f"{digits(ms)} ms, {share:.0%}{reached}", "m")


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    given = f' class="{kind}"' if kind else ""
    return f'<text{given} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
