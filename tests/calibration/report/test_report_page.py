# SPDX-License-Identifier: Apache-2.0
"""The report's files: complete, self-contained, the same bytes again, and open about bad results."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from fastmmoe.calibration.measure.bootstrap import Interval
from fastmmoe.calibration.report.charts import NARROW, VARIABLES, draw_charts, for_page
from fastmmoe.calibration.report.devices import Device
from fastmmoe.calibration.report.findings import describe
from fastmmoe.calibration.report.maps import SceneMap
from fastmmoe.calibration.report.page import bounds, points, write_pages
from fastmmoe.calibration.report.results import Comparison, Report
from fastmmoe.calibration.report.settings import Setting

SECTIONS = ("claims", "flops", "latency", "equal", "kinds", "recommended", "maps", "points", "method", "origin")
CHARTS = ("accuracy-flops", "accuracy-latency", "equal-flops", "kinds")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--dump-dom"),
)
MAP = SceneMap(
    question="What color is the <cube>?",
    expected="red",
    full_answer="red",
    answer="",
    setting=Setting("fastmmoe", 0.3),
    survivors=Image.new("RGB", (40, 20), (200, 30, 30)),
    similarity=Image.new("RGB", (40, 20), (30, 30, 200)),
)


@pytest.fixture(scope="module")
def written(good_report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a good report."""
    out = tmp_path_factory.mktemp("report") / "deep" / "out"
    write_pages(out, good_report, [MAP])
    return out


def test_the_page_has_every_section_and_needs_nothing_else(written: Path) -> None:
    html = (written / "report.html").read_text(encoding="utf-8")
    assert [s for s in SECTIONS if html.count(f'id="{s}"') != 1] == []
    # Names of XML namespaces are no addresses.
    addresses = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert re.findall(r"https?://|//\w+\.\w+/|@import|<script|<link[^>]*stylesheet", addresses) == []
    sources = re.findall(r'(?:src|href)="([^"]*)"', addresses)
    assert {s.split(",")[0] for s in sources if not s.startswith("#")} == {"data:", "data:image/png;base64"}
    # Each for a wide window, and for a phone.
    assert html.count("<svg") == 2 * html.count(f'viewBox="0 0 {72 * NARROW:g} ') == 2 * len(CHARTS)


def test_no_two_elements_share_an_id(written: Path) -> None:
    html = (written / "report.html").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(set(ids)) == len(ids)
    missing = {ref for ref in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html) for ref in ref if ref} - set(ids)
    assert missing == set()


def test_text_from_the_data_is_escaped(written: Path) -> None:
    html = (written / "report.html").read_text(encoding="utf-8")
    assert "What color is the &lt;cube&gt;?" in html
    assert "<cube>" not in html


def test_figures_take_the_colours_of_the_page(good_report: Report) -> None:
    svg = draw_charts(good_report)["accuracy-flops"]
    shown = for_page("accuracy-flops", svg)
    assert all(color not in shown for color in VARIABLES)
    for variable in ("--ink", "--fastmmoe", "--sparsevlm", "--line"):
        assert f"var({variable})" in shown
    assert re.match(r"<svg (?![^>]* width=)(?![^>]* height=)[^>]*viewBox", shown)


def test_figures_of_phones_are_narrow(good_report: Report, devices: tuple[Device, ...]) -> None:
    """Points as wide as the paper says, so that letters are not shrunk."""
    charts = draw_charts(msgspec.structs.replace(good_report, devices=devices), NARROW)
    assert set(charts) == {*CHARTS, "devices"}
    for svg in charts.values():
        assert f'width="{72 * NARROW:g}pt"' in svg


def test_figures_are_the_same_bytes_again(good_report: Report, written: Path) -> None:
    charts = draw_charts(good_report)
    assert tuple(charts) == CHARTS
    for name, svg in charts.items():
        assert (written / f"{name}.svg").read_text(encoding="utf-8") == svg


def test_markdown_shows_files_that_are_there(written: Path) -> None:
    text = (written / "report.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert set(shown) == {*(f"{name}.svg" for name in CHARTS), "map-1-survivors.png", "map-1-similarity.png"}
    assert all((written / name).is_file() for name in shown)
    for line in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({row.count("|") for row in line.splitlines()}) == 1, line


def test_the_recommended_call_is_python(good_report: Report, written: Path) -> None:
    """In both files, as formatters leave it."""
    (code,) = re.findall(r"```python\n(.*?)\n```", (written / "report.md").read_text(encoding="utf-8"), re.DOTALL)
    call = ast.parse(code).body[0]
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    given = {argument.arg: ast.literal_eval(argument.value) for argument in call.value.keywords}
    assert good_report.recommended is not None
    assert given == good_report.point(good_report.recommended).options
    assert "'" not in code
    assert code in unescape((written / "report.html").read_text(encoding="utf-8"))


def test_numbers_are_those_of_the_report(good_report: Report, written: Path) -> None:
    numbers = json.loads((written / "report.json").read_bytes())
    assert numbers == json.loads(msgspec.json.encode(good_report))
    assert len(numbers["points"]) == len(good_report.points)
    html = (written / "report.html").read_text(encoding="utf-8")
    for text in (good_report.origin.bundle_identity, good_report.origin.command, good_report.origin.machine.date):
        assert text in html


def test_nothing_half_written_is_left(written: Path) -> None:
    names = {path.name for path in written.iterdir()}
    assert names == {
        *(f"{name}.svg" for name in CHARTS),
        *("report.html", "report.md", "report.json", "map-1-survivors.png", "map-1-similarity.png"),
    }


def test_machines_stand_beside_accuracy(good_report: Report, devices: tuple[Device, ...], tmp_path: Path) -> None:
    """First token with and without vision, by machine; which accuracy is of another export is said."""
    report = msgspec.structs.replace(good_report, devices=devices)
    write_pages(tmp_path, report, [])
    html, text = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert html.count('id="devices"') == 1 and html.count("<svg") == 2 * (len(CHARTS) + 1)
    heading = "On Test CPU (cpu) the first token takes 105 ms at retention 1, 67 at 0.1; without vision 60 and 22"
    assert f"<h2>{heading}</h2>" in html and f"## {heading}\n" in text
    kept = good_report.point(Setting("fastmmoe", 0.5)).quality
    assert f"{kept.value:.1%} ({bounds(kept)})</td><td>80 ms</td><td>35 ms</td>" in html
    row = "| Orin <NX> Engineering Reference Developer Kit, tensorrt | jetson-orin-nx, fp16 (another export) |"
    assert f"{row} FastMMoE | 0.5 | {kept.value:.1%} ({bounds(kept)}) | 20 ms | 8.75 ms |" in text
    assert "Orin &lt;NX&gt;" in html and "Orin <NX>" not in html
    assert (tmp_path / "devices.svg").is_file() and "(devices.svg)" in text
    assert json.loads((tmp_path / "report.json").read_bytes())["devices"][1]["vision_ms"] == 10.0
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({row.count("|") for row in table.splitlines()}) == 1, table


def test_a_bad_result_is_in_the_title(bad_report: Report, tmp_path: Path) -> None:
    words = describe(bad_report)
    assert "keeps only" in words.title
    assert "short of the claim" in words.title
    assert "below a baseline" in words.equal
    write_pages(tmp_path, bad_report, [])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<h1>{words.title}</h1>" in html
    assert html.count("does not hold") == 2
    assert 'id="maps"' not in html


def test_a_baseline_that_is_better_is_in_the_title(make_report: Callable[..., Report]) -> None:
    loss = {"fastmmoe": 0.03, "pruning": 0.1, "random": 0.3, "fastv": 0.0, "sparsevlm": 0.2}
    words = describe(make_report(loss))
    assert "but a baseline does better at equal cost" in words.title


def test_a_wide_interval_is_in_the_title(good_report: Report) -> None:
    claim = msgspec.structs.replace(good_report.claims[0], holds=False)
    report = msgspec.structs.replace(good_report, claims=(claim, good_report.claims[1]))
    assert "its interval reaches too low to confirm the claim" in describe(report).title


def test_what_cannot_be_reached_is_told(good_report: Report, tmp_path: Path) -> None:
    missing = Comparison(
        ours=Setting("fastmmoe", 0.1),
        variant="fastv",
        other=None,
        ours_reduction=0.7,
        other_reduction=None,
        ours_accuracy=0.9,
        other_accuracy=None,
        difference=None,
        verdict="out of reach",
        why="no retention of fastv saves 70%",
    )
    report = msgspec.structs.replace(good_report, comparisons=(missing,), recommended=None)
    write_pages(tmp_path, report, [])
    for name in ("report.html", "report.md"):
        assert "no retention of fastv saves 70%" in (tmp_path / name).read_text(encoding="utf-8")
    assert "No setting is sure to keep 95.5%" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_differences_have_signs_and_undefined_values_dashes() -> None:
    assert (points(0.0123), points(-0.0123), points(float("nan"))) == ("+1.23", "−1.23", "–")
    assert bounds(Interval(0.5, float("nan"), float("nan"))) == "no interval"
    assert bounds(Interval(0.5, 0.4, 0.6)) == "40.0 to 60.0"


def open_in_browser(page: Path, scratch: Path) -> tuple[str, list[str], set[str]]:
    """A page's DOM, what it wrote to the console, and the addresses that it asked for."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs a browser: install the Debian package chromium (looked for {', '.join(BROWSERS)})")
    log = scratch / "net.json"
    result = subprocess.run(
        [browser, *BROWSER_FLAGS, f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    # The browser's own requests, for updates for example, come from no origin.
    events = [event.get("params") or {} for event in json.loads(log.read_bytes())["events"]]
    asked = {e["url"] for e in events if "url" in e and e.get("initiator", "not an origin") != "not an origin"}
    return result.stdout, console, {url for url in asked if not url.startswith("data:")}


def test_a_browser_opens_it_without_errors_or_requests(written: Path, tmp_path: Path) -> None:
    dom, console, asked = open_in_browser(written / "report.html", tmp_path)
    assert [s for s in SECTIONS if f'id="{s}"' not in dom] == []
    assert dom.count("<svg") == 2 * len(CHARTS)
    assert (console, asked) == ([], set())


def test_the_browser_would_tell(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://a.invalid/x.png"><script>console.error("oh")</script>', encoding="utf-8")
    _, console, asked = open_in_browser(page, tmp_path)
    assert asked == {"http://a.invalid/x.png"}
    assert any('"oh"' in line for line in console)
