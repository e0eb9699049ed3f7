# SPDX-License-Identifier: Apache-2.0
"""fastmmoe bench on a backend that computes nothing: its options, forms and refusals."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from fastmmoe.runtime import vlm as vlm_module
from fastmmoe.runtime.backends.node_times import Call, NodeTime
from fastmmoe.runtime.bench.result import Row, read_result, row_name
from fastmmoe.runtime.cli.main import main
from tests.support.bench_results import BUNDLE, make_result, make_row
from tests.support.echo import Echo, echo_vlm
from tests.support.processors import MakeProcessor

DOCS = Path(__file__).parents[3] / "docs" / "bench.md"
QUICK = ("-n", "1", "--warmup", "0", "--new-tokens", "2")


@pytest.fixture
def loaded(processor: MakeProcessor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Echo, Any, dict[str, Any]]]:
    """Backends, directories and arguments of the bundles that were loaded."""
    found: list[tuple[Echo, Any, dict[str, Any]]] = []

    def load(directory: Path, **given: Any) -> Any:
        model, echo = echo_vlm(processor("dsvl2-mha"))
        echo.provider = "cpu"
        found.append((echo, directory, given))
        return model

    monkeypatch.setattr(vlm_module, "VLM", load)
    return found


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    try:
        code: Any = main(["bench", *arguments])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.startswith("fastmmoe: error: ")
    return err


def test_a_table(loaded: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "bundle", *QUICK, "-r", "1.0,0.5"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^\| prefill \d+ r0\.5 ", out, flags=re.M) and max(map(len, out.splitlines())) <= 80
    assert "no joules: there is no INA3221 power monitor to read\n" in err and "repetition" not in err
    ((_, directory, given),) = loaded
    assert directory == Path("bundle")
    assert given == {"provider": "auto", "portable": False, "threads": 0, "spinning": False, "verify": True}


def test_json_is_both(loaded: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """docs/bench.md has every key."""
    assert main(["bench", "bundle", *QUICK, "--json"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "a.json").write_text(text)
    assert len(read_result(tmp_path / "a.json").rows) == 1 + 3 * 4
    assert main(["bench", "bundle", *QUICK, "-o", "json"]) == 0
    found, other = json.loads(text), json.loads(capsys.readouterr().out)
    assert found.keys() == other.keys() and found["bundle"] == other["bundle"]
    page = DOCS.read_text(encoding="utf-8")
    keys = [*found, *found["machine"], *found["bundle"], *found["settings"], *Row.__struct_fields__]
    assert not [key for key in keys if f"`{key}`" not in page]


def test_options_reach_the_requests(loaded: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("--depth", "900", "--batch", "1,2", "--concurrency", "2", "--method", "none", "--max-tiles", "1")
    assert main(["bench", "bundle", *QUICK, "-r", "1.0", *shape, "--threads", "1", "--no-verify", "-o", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = {(row["test"], row["batch"], row["concurrency"]) for row in rows}
    assert {("decode", 1, 1), ("decode", 2, 1), ("request", 1, 2)} < kinds and len(rows) == 1 + 4 + 3 + 2
    assert {row["tokens"] for row in rows if row["test"] == "prefill"} == {900, 1800}
    assert loaded[0][2] == {"provider": "auto", "portable": False, "threads": 1, "spinning": False, "verify": False}
    assert rows[0]["settings"]["method"] == "none" and rows[0]["settings"]["max_tiles"] == 1


def test_the_unmodified_model_is_measured_as_it_is(loaded: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Without -r: it takes no other retention. With one it is refused where that is none of its own."""
    assert main(["bench", "bundle", *QUICK, "--method", "none", "-o", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row.get("retention") for row in rows if "test" in row} <= {None, 1.0} and rows[0]["settings"]
    assert "takes retention 1" in refusal(capsys, "bundle", *QUICK, "--method", "none", "-r", "0.5")


def test_every_row_has_a_name_of_its_own(loaded: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A comparison finds its counterpart by what makes it different; the same answer comes after several prompts."""
    shape = ("--max-tiles", "1", "--depth", "900,901", "--batch", "1,2", "--concurrency", "1,2")
    assert main(["bench", "bundle", *QUICK, "-r", "1.0,0.5", *shape, "--json"]) == 0
    (tmp_path / "a.json").write_text(capsys.readouterr().out)
    names = [row_name(row) for row in read_result(tmp_path / "a.json").rows]
    assert len(set(names)) == len(names) == 1 + 2 * 2 * (4 + 3 + 2)
    assert {"request 2 d900 r0.5", "first token d901 r1", "request 2 d901 r1 c2"} < set(names)


def test_pictures_are_files_or_standard_input(
    loaded: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    given = io.TextIOWrapper(io.BytesIO((tmp_path / "a.png").read_bytes()))
    monkeypatch.setattr("sys.stdin", given)
    path = str(tmp_path / "a.png")
    assert main(["bench", "bundle", *QUICK, "-r", "50%", "--image", "-", "--image", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["images"] == ["-", path]
    assert len(loaded[0][0].pictures) == 1


def test_times_of_trtexec_are_written(loaded: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    assert main(["bench", "bundle", "-n", "3", "-r", "0.5", "--new-tokens", "2", "--export-times", str(path)]) == 0
    assert [one["name"] for one in json.loads(path.read_text())] == ["request r0.5"] * 3


def test_a_profile_of_trtexec_is_written(
    loaded: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By a second load, with a profiler, and as many requests again."""

    def end_profiling(self: Echo) -> dict[str, list[Call]]:
        return {"vision": [[NodeTime("a", "", 1.0 + i)] for i in range(len(self.pictures))]}

    monkeypatch.setattr(Echo, "end_profiling", end_profiling, raising=False)
    path = tmp_path / "profile.json"
    given = ("-n", "2", "--warmup", "1", "-r", "0.5", "--new-tokens", "2", "--export-profile", str(path))
    assert main(["bench", "bundle", *given]) == 0
    layer = {"name": "vision/a", "timeMs": 5.0, "averageMs": 2.5, "medianMs": 2.5, "percentage": 100.0}
    assert json.loads(path.read_text()) == [{"count": 2}, layer]
    assert [one[2].get("profile", False) for one in loaded] == [False, True]


def test_an_interrupt_leaves_no_file(
    loaded: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As it says: not of the times, either, which are known when the profile begins."""

    def interrupted(_: Echo) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Echo, "end_profiling", interrupted, raising=False)
    files = ("--export-times", str(tmp_path / "times.json"), "--export-profile", str(tmp_path / "profile.json"))
    assert main(["bench", "bundle", *QUICK, "-r", "0.5", *files]) == 130
    assert capsys.readouterr().err.endswith("interrupted; nothing was written\n")
    assert len(loaded) == 2 and list(tmp_path.iterdir()) == []


def test_a_profile_that_nothing_can_take_is_refused_first(
    loaded: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "profile.json")
    said = refusal(capsys, "bundle", *QUICK, "-r", "0.5", "--export-profile", path)
    assert "not how long they ran: take --provider tensorrt" in said
    assert len(loaded) == 1 and loaded[0][0].calls == []


def test_a_terminal_sees_the_progress(
    loaded: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["bench", "bundle", *QUICK, "-r", "0.5"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("\r\x1b[Krepetition 1 of 1\r\x1b[Kno joules: ")


@pytest.fixture
def files(tmp_path: Path) -> Any:
    """Function (name, row, bundle) -> path of a written measurement."""

    def write(name: str, row: Row, bundle: dict[str, Any] = BUNDLE) -> str:
        path = tmp_path / name
        path.write_text(json.dumps(msgspec.to_builtins(make_result(row, bundle=bundle))))
        return str(path)

    return write


def test_two_beside_each_other(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = files("a.json", make_row()), files("b.json", make_row(tuple(2 * one for one in make_row().samples_ms)))
    assert main(["bench", "--compare", a, b]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^prefill 74 r0\.5 +10\.2 +20\.4 +2\.000 +1\.\d+-2\.\d+ +100\.0% slower$", out, flags=re.M)
    assert main(["bench", "--compare", a, b, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "fastmmoe-bench-compare/1" and found["rows"][0]["ratio"] == pytest.approx(2)
    page = DOCS.read_text(encoding="utf-8")
    assert not [key for key in (*found, *found["rows"][0]) if f"`{key}`" not in page]


def test_refusals_of_comparisons(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    a, other = files("a.json", make_row()), files("b.json", make_row(), BUNDLE | {"sha256": "cd" * 32})
    assert "are of different bundles" in refusal(capsys, "--compare", a, other)
    assert "no such file" in refusal(capsys, "--compare", a, "absent.json")
    said = refusal(capsys, "bundle", "--compare", a, a, "-n", "3", "--new-tokens", "4")
    assert "--compare reads what was measured: leave out bundle, --repetitions, --new-tokens" in said
    given = ("--threads", "2", "--provider", "cpu", "--portable", "--no-verify")
    said = refusal(capsys, "--compare", a, a, *given)
    assert "leave out --provider, --threads, --portable, --no-verify" in said
    assert "-o csv: a comparison is written as md or json" in refusal(capsys, "--compare", a, a, "-o", "csv")
    assert "expected 2 arguments" in refusal(capsys, "--compare", a)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a bundle's directory, or --compare A.json B.json"),
        (("bundle", "-n", "0"), "-n 0: expected 1 or more"),
        (("bundle", "-r", "2"), "retention 2.0: expected a number in (0, 1]"),
        (("bundle", "-r", "half"), "'half': expected a share such as 0.5, or 50%"),
        (("bundle", "--batch", "1.5"), "'1.5': expected whole numbers such as 1,2,4"),
        (("bundle", "--threads", "-1"), "--threads -1: expected 0 or more"),
        (("bundle", "-o", "xml"), "invalid choice: 'xml'"),
        (("bundle", "-o", "csv", "--json"), "--json and -o csv: give one"),
        (("bundle", "--export-times", "absent/times.json"), "absent is no directory; give another place"),
        (("bundle", "--export-profile", "profile.json"), "of one kind of request, these are 3: give one -r"),
        (("bundle", "--concurrency", "999"), "--concurrency 999: expected at most 64"),
        (("bundle", "--batch", "1,1000000"), "--batch 1000000: expected at most 256"),
        (("bundle", "-n", "9" * 20), f"-n {'9' * 20}: expected at most 10000"),
        (("bundle", "--export-times", "bundle/manifest.json"), "inside the bundle bundle, which takes no other files"),
        (("bundle", "--export-profile", "bundle/x.json"), "inside the bundle bundle, which takes no other files"),
        (("bundle", "--export-times", "a", "--export-profile", "./a"), "--export-profile a: give two files"),
    ],
)
def test_refusals_before_anything_is_loaded(
    arguments: tuple[str, ...],
    said: str,
    loaded: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").mkdir()
    assert said in refusal(capsys, *arguments)
    assert loaded == []


def test_a_prompt_without_room(loaded: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--depth 3: the prompt has " in refusal(capsys, "bundle", "--depth", "3")
