# SPDX-License-Identifier: Apache-2.0
"""fastmmoe run: its arguments, what it prints, and that --dump loses nothing of the user's."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from fastmmoe.runtime import vlm
from fastmmoe.runtime.answer import Answer, Logprob, Piece
from fastmmoe.runtime.choices import Choice
from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.cli.run import answer_dict, describe
from fastmmoe.runtime.generation import RequestStats


class FakeModel:
    """Answers ones, without a bundle."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def run_tensors(self, *_: object, **__: object) -> dict[str, Any]:
        """Logits."""
        return {"logits": np.ones((2, 3), np.float32)}


@pytest.fixture
def dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:
    """Function path -> exit code of a run that writes there."""
    monkeypatch.setattr(vlm, "VLM", FakeModel)
    np.savez(tmp_path / "in.npz", input_ids=np.ones((1, 4), np.int64))
    return lambda path: main(["run", "bundle", "--inputs", str(tmp_path / "in.npz"), "--dump", str(path)])


def files(directory: Path) -> set[str]:
    """Names in it, but for the inputs."""
    return {path.name for path in directory.iterdir()} - {"in.npz"}


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that takes no files, not even the superuser's."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mount.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def place_of(kind: str, directory: Path) -> tuple[Path, str]:
    """A path where nothing can be written, and what is said of it."""
    path = directory / "out.npz"
    if kind == "device":
        os.mkfifo(path)
        return path, "what is there is no regular file"
    if kind == "directory":
        path.mkdir()
        return path, "a directory is there"
    if kind == "loop":
        path.symlink_to(path)
        return path, "what is there is no regular file"
    if kind == "parent":
        return directory / "no" / "out.npz", f"{directory / 'no'} is no directory"
    (directory / "plain").touch()
    return directory / "plain" / "out.npz", "plain is no directory"


@pytest.mark.parametrize("kind", ["device", "directory", "loop", "parent", "file for a parent"])
def test_told_before_the_run(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, words = place_of(kind, tmp_path)
    before = {p.name: p.lstat().st_mode for p in tmp_path.iterdir()}
    assert main(["run", str(tmp_path / "no-bundle"), "--inputs", "no.npz", "--dump", str(path)]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"fastmmoe: error: {path}: cannot be written: ") and words in line
    assert line.count("\n") == 1
    assert {p.name: p.lstat().st_mode for p in tmp_path.iterdir()} == before


def test_a_bundle_takes_no_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("its own")
    (tmp_path / "link").symlink_to(bundle / "manifest.json")
    for path in (bundle / "manifest.json", tmp_path / "link"):
        assert main(["run", str(bundle), "--inputs", "no.npz", "--dump", str(path)]) == 2
        assert f"{path}: inside the bundle {bundle}, which takes no other files" in capsys.readouterr().err


def test_a_read_only_disk_is_told_before_the_run(read_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = read_only / "out.npz"
    assert main(["run", "no-bundle", "--inputs", "no.npz", "--dump", str(path)]) == 2
    assert f"{path}: cannot be written: {read_only} takes no files of yours" in capsys.readouterr().err


def test_a_link_stays_and_its_target_is_written(dump: Callable[[Path], int], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "mine.npz", tmp_path / "out.npz"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    assert dump(link) == 0
    assert link.is_symlink() and np.load(real)["logits"].shape == (2, 3)
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert files(tmp_path / "real") == {"mine.npz"}


def test_nothing_beside_it_is_touched(dump: Callable[[Path], int], tmp_path: Path) -> None:
    others = {f"out.npz{end}" for end in (".partial", ".partial.npz", ".tmp", ".npz")} | {f".out.npz.{os.getpid()}"}
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    assert dump(tmp_path / "out.npz") == 0
    assert files(tmp_path) == others | {"out.npz"}
    assert all((tmp_path / name).read_bytes() == b"mine" for name in others)


def test_the_longest_name(dump: Callable[[Path], int], tmp_path: Path) -> None:
    assert dump(tmp_path / ("n" * 251 + ".npz")) == 0
    assert len(files(tmp_path)) == 1


def test_a_disk_that_keeps_what_it_does_not_take(
    dump: Callable[[Path], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(number: int) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        return call

    monkeypatch.setattr(Path, "replace", fail(5))
    monkeypatch.setattr(Path, "unlink", fail(30))
    assert dump(tmp_path / "out.npz") == 2
    assert re.search(r"out\.npz: cannot be written: Input/output error", capsys.readouterr().err)


@pytest.mark.parametrize("option", ["--prompt", "--system", "--stop", "--choices"])
def test_bytes_that_are_no_text(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As Python gives the bytes of a command line that its locale's encoding does not take."""
    assert main(["run", "no-bundle", "--prompt", "a", option, "caf\udce9"]) == 2
    error = f"{option} 'caf\\udce9': is not valid UTF-8 in this locale; give UTF-8"
    assert capsys.readouterr().err == f"fastmmoe: error: {error}\n"


@pytest.mark.parametrize(("locale", "text"), [("ascii", b"caf\xc3\xa9"), ("utf-8", b"caf\xe9")])
def test_a_prompt_that_the_locale_does_not_take(locale: str, text: bytes) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": str(int(locale == "utf-8"))}
    command: list[str | bytes] = [
        sys.executable,
        "-m",
        "fastmmoe.runtime.cli.main",
        "run",
        "no-bundle",
        "--prompt",
        text,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f": is not valid {locale.upper()} in this locale; " in done.stderr
    assert ("LC_ALL=C.UTF-8" in done.stderr) == (locale == "ascii")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--inputs a.npz", "--inputs and --dump go together"),
        ("--prompt a --dump a.npz", "--inputs and --dump go together"),
        ("--inputs a --dump b --prompt c --image d", "has no text: leave out --prompt, --image"),
        ("--inputs a --dump b --system c", "has no text: leave out --system"),
        ("--inputs a --dump b --max-tiles 1 --warm-up", "has no text: leave out --max-tiles, --warm-up"),
        ("--inputs a --dump b --stop c --logprobs 0", "has no text: leave out --stop, --logprobs"),
        ("--inputs a --dump b --choices c d", "has no text: leave out --choices"),
        ("--inputs a --dump b --deadline-ms 9", "has no text: leave out --deadline-ms"),
        ("--image a.png", "give --prompt (and --image), or --inputs and --dump"),
        ("--prompt a --threads -1", "--threads -1: expected 0 or more"),
        ("--prompt a --temperature -0.5", "temperature -0.5: expected a number, 0"),
        ("--prompt a --top-p 0", "top_p 0.0: expected a number in (0, 1]"),
        ("--prompt a --top-k -2", "top_k -2: expected 0 or -1 (all tokens) or more"),
        ("--prompt a --logprobs 21", "logprobs 21: expected 0 to 20"),
        ("--prompt a --deadline-ms 0", "deadline_ms 0.0: expected a number of milliseconds above 0"),
        ("--prompt a --choices b b", "choices hold 'b' twice"),
        ("--prompt a --choices b --temperature 1", "by their likelihood: leave out temperature"),
        ("--prompt a --retention 1 --pruning-rate 0", "--pruning-rate: not allowed with argument --retention"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Told before the bundle is looked for."""
    with suppress(SystemExit):
        assert main(["run", "no-bundle", *arguments.split()]) == 2
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1


STATS = RequestStats(
    method="fastmmoe",
    retention=0.75,
    text_tokens=1200,
    visual_tokens=1792,
    kept_visual_tokens=(1500, 1344),
    merged_vectors=(10, 0),
    visual_top_k=(4,),
    tiles=7,
    past_tokens=0,
    prefill_flops=6 * 10**9,
    prefill_flops_unmodified=8 * 10**9,
    vision_flops=10**9,
    preprocess_ms=1.0,
    vision_ms=20.4,
    prefill_ms=100.0,
    decode_ms=[2.0, 3.0],
    kept_index=[np.arange(3)],
    provider="cuda",
)


def test_a_request_in_two_lines() -> None:
    assert describe(STATS, is_warm=True) == (
        "fastmmoe: visual tokens 1,792 -> 1,500 -> 1,344, text tokens 1,200, retention 0.75, pruning rate 0.25\n"
        "prefill 6.000 GFLOPs (25.0% less), first token after 121 ms (vision 20, prefill 100), decode 2.5 ms/token, "
        "provider cuda, warm"
    )
    ended = describe(replace(STATS, prefill_ms=0.0, decode_ms=[]), is_warm=True)
    assert "(25.0% less), ended without a token after 21 ms (vision 20, prefill 0), decode none, " in ended
    cold = describe(replace(STATS, decode_ms=[]), is_warm=False)
    assert cold.endswith("decode none, provider cuda, first request: slower than those after it (--warm-up)")


def test_a_request_in_json() -> None:
    found = json.loads(json.dumps(STATS.plain()))
    assert replace(STATS, prefill_ms=0.0).plain()["ttft_ms"] is None
    derived = {"pruning_rate": 0.25, "ttft_ms": 121.4, "flops_reduction": 0.25}
    assert {name: found[name] for name in derived} == pytest.approx(derived)
    assert found.keys() == {f.name for f in fields(RequestStats)} - {"kept_index"} | derived.keys()
    assert found["kept_visual_tokens"] == [1500, 1344] and found["decode_ms"] == [2.0, 3.0]


class Speaker:
    """Answers "h" and "\u00e9"; keeps what it is asked."""

    asked: ClassVar[list[Any]] = []
    said: ClassVar[list[Piece]] = [Piece("h", 1, None, STATS), Piece("\u00e9", 2, "stop", STATS)]

    def warm_up(self, messages: Any, **options: Any) -> None:
        """Kept as what it is asked."""
        self.asked.append(("warm", messages, options))

    def __init__(self, *arguments: object, **options: object) -> None:
        self.asked[:] = [(arguments, options)]

    def generate_stream(self, messages: Any, **options: Any) -> Iterator[Piece]:
        """Two pieces."""
        self.asked.append((messages, options))
        return iter(self.said)

    def generate(self, messages: Any, **options: Any) -> Answer:
        """Both at once."""
        return Answer.of(list(self.generate_stream(messages, **options)))


def test_what_a_run_asks_and_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(vlm, "VLM", Speaker)
    pictures = ["--image", "a.png", "--image", "b.png"]
    question = [*pictures, "--prompt", "Why?", "--system", "Be brief.", "--pruning-rate", "0.25", "--max-tiles", "2"]
    assert main(["run", "out", *question, "--threads", "1", "--spinning", "--no-verify"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == ("h\u00e9\n", describe(STATS, is_warm=False) + "\n")
    loaded, (messages, options) = Speaker.asked
    settings = {"provider": "auto", "portable": False, "threads": 1, "spinning": True, "verify": False}
    assert loaded == ((Path("out"),), settings)
    parts = [{"type": "image", "image": "a.png"}, {"type": "image", "image": "b.png"}, {"type": "text", "text": "Why?"}]
    assert messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    given = {name: value for name, value in options.items() if value is not None}
    defaults = {"seed": 0, "max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0, "top_k": 0}
    assert given == {"pruning_rate": 0.25, "max_tiles": 2} | defaults


def test_choices_and_a_request_before(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(vlm, "VLM", Speaker)
    assert main(["run", "out", "--prompt", "Why?", "--choices", "left", "turn right", "--warm-up"]) == 0
    warm, (messages, options) = Speaker.asked[1:]
    assert warm == ("warm", messages, options) and options["choices"] == ["left", "turn right"]
    assert describe(STATS, is_warm=True) in capsys.readouterr().err


def test_options_of_generation_reach_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm, "VLM", Speaker)
    sampling = ["--temperature", "0.5", "--top-p", "0.9", "--top-k", "7", "--seed", "3", "--deadline-ms", "99.5"]
    assert main(["run", "out", "--prompt", "Why?", *sampling, "--stop", "a", "--stop", "b c", "--logprobs", "2"]) == 0
    _, (_, options) = Speaker.asked
    expected = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3, "deadline_ms": 99.5, "logprobs": 2}
    assert options | expected == options and options["stop"] == ["a", "b c"]


def test_choices_and_log_probabilities_in_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vlm, "VLM", Speaker)
    choices = (Choice("left", (3,), -2.0, 0.25), Choice("right", (4, 5), -1.0, 0.75))
    logprob = Logprob(4, "ri", -0.5, (Logprob(4, "ri", -0.5), Logprob(3, "\n", -2.0)))
    monkeypatch.setattr(
        Speaker,
        "said",
        [Piece("right", 4, None, STATS, logprob=logprob), Piece("", None, "deadline", STATS, choices=choices)],
    )
    assert main(["run", "out", "--prompt", "Where?"]) == 0
    output = capsys.readouterr()
    assert output.out == "right\n"
    assert output.err.splitlines()[:4] == [
        " 75.0% right (log-likelihood -1.0000)",
        " 25.0% left (log-likelihood -2.0000)",
        "'ri' -0.5000 (60.7%): 'ri' -0.5000, '\\n' -2.0000",
        "ended early: deadline",
    ]


def test_a_request_without_a_picture() -> None:
    said = describe(replace(STATS, visual_tokens=0, kept_visual_tokens=(0, 0), tiles=0), is_warm=True)
    assert said.splitlines()[0] == "no picture, so nothing to prune: text tokens 1,200"


def test_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(vlm, "VLM", Speaker)
    Speaker.asked.clear()
    for prompt in ("", " \n"):
        assert main(["run", "out", "--prompt", prompt]) == 2
        assert capsys.readouterr().err == (
            "fastmmoe: error: --prompt is empty and there is no --image: nothing is asked\n"
        )
    assert Speaker.asked == []
    assert main(["run", "out", "--prompt", "", "--image", "a.png"]) == 0


def test_a_picture_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm, "VLM", Speaker)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"picture"), isatty=lambda: False))
    assert main(["run", "out", "--image", "-", "--prompt", "Why?", "--retention", "25%"]) == 0
    _, ((message,), options) = Speaker.asked
    assert message["content"][0] == {"type": "image", "image": b"picture"} and options["retention"] == 0.25


def test_an_answer_in_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(vlm, "VLM", Speaker)
    assert main(["run", "out", "--prompt", "Why?", "--json"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert (found["text"], found["token_ids"], found["finish_reason"]) == ("h\u00e9", [1, 2], "stop")
    assert found["warm"] is False and found["stop_reason"] is None and found["choices"] == found["logprobs"] == []
    assert found["channels"] == {} and found["tiles"] == 7 and output.err == "" and "h\u00e9" in output.out


def test_what_an_answer_has_beside_its_text_in_json() -> None:
    """docs/generation.md names these fields."""
    logprob = Logprob(4, "ri", -0.5, (Logprob(3, "\n", -2.0),))
    pieces = [Piece("a", 4, "stop", STATS, logprob=logprob, stop_reason="b", choices=(Choice("a", (4,), -1.0, 1.0),))]
    found = json.loads(json.dumps(answer_dict(Answer.of(pieces))))
    assert found["logprobs"] == [
        {
            "token_id": 4,
            "token": "ri",
            "logprob": -0.5,
            "top_logprobs": [{"token_id": 3, "token": "\n", "logprob": -2.0, "top_logprobs": []}],
        }
    ]
    assert found["choices"] == [{"text": "a", "token_ids": [4], "log_likelihood": -1.0, "probability": 1.0}]
    assert found["stop_reason"] == "b"
    page = (Path(__file__).parents[3] / "docs" / "generation.md").read_text(encoding="utf-8")
    assert not [name for name in (*found, "warm") if f"`{name}`" not in page]
