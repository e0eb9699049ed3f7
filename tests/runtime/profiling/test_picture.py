# SPDX-License-Identifier: Apache-2.0
"""The picture as XML: every bar is as long as its number says, and inside of the paper."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from fastmmoe.runtime.cost.demands import Demand
from fastmmoe.runtime.profiling.picture import BARS, LABELS, MARGIN, WIDTH, draw
from tests.support.profiles import phase, profile

SVG = "{http://www.w3.org/2000/svg}"


def elements(text: str, name: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(text).iter(f"{SVG}{name}"))


def test_bars_are_as_long_as_their_times() -> None:
    """Parts and what is outside of them: the longest takes the whole width."""
    found = draw(profile(phase()))
    widths = [float(bar.get("width", "")) for bar in elements(found, "rect")[1:]]
    expected = [BARS * ms / 8.0 for ms in (0.5, 1.5, 8.0, 0.25, 0.75)]
    assert [round(width, 1) for width in widths] == [round(width, 1) for width in expected]
    texts = [text.text for text in elements(found, "text")]
    assert {"experts", "attention projections", "outside of nodes", "8 ms, 73%"} <= {*texts}
    assert texts[0] == "demo on A <processor> & more, provider cpu, 2 threads"


def test_least_times_are_marked() -> None:
    """Where it is greater than what was measured, too: then it is the longest."""
    found = draw(
        profile(
            phase(
                least={"routed_experts": 2.0, "embedding": 16.0},
                demands={"routed_experts": Demand(1), "embedding": Demand(1)},
            )
        )
    )
    marks = [float(line.get("x1", "")) for line in elements(found, "line") if line.get("class") == "l"][1:]
    assert marks == pytest.approx([MARGIN + LABELS + BARS, MARGIN + LABELS + BARS / 8], abs=0.1)
    assert any(text.text == "8 ms, 73%, least 2" for text in elements(found, "text"))


def test_everything_is_on_the_paper() -> None:
    found = draw(profile(phase("vision"), phase("prefill"), phase("decode"), rates=None))
    root = ElementTree.fromstring(found)
    assert (root.get("width"), root.get("viewBox")) == (str(WIDTH), f"0 0 {WIDTH} {root.get('height')}")
    for element in root.iter():
        for name, most in (("y", float(root.get("height", ""))), ("y2", float(root.get("height", ""))), ("x2", WIDTH)):
            assert 0 <= float(element.get(name, 0)) <= most, element.attrib
    assert "this machine's rates are not known: no roofline" in found
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<script|href", found)
