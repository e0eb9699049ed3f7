# SPDX-License-Identifier: Apache-2.0
"""The command fastmmoe: its arguments, what it prints, and that run --dump loses nothing of the user's."""

from __future__ import annotations

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
from fastmmoe.runtime.backends.tensorrt import build
from fastmmoe.runtime.backends.tensorrt.build import BuildOptions
from fastmmoe.runtime.cli.main import describe, main, stats_dict
from fastmmoe.runtime.generation import RequestStats
from fastmmoe.runtime.vlm import Answer, Piece


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


@pytest.mark.parametrize("option", ["--prompt", "--system"])
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
        ("--inputs a --dump b --prompt c", "--inputs takes the place of --image, --prompt, --system and --max-tiles"),
        ("--inputs a --dump b --system c", "--inputs takes the place of --image, --prompt, --system and --max-tiles"),
        ("--inputs a --dump b --image c", "--inputs takes the place of --image, --prompt, --system and --max-tiles"),
        ("--inputs a --dump b --max-tiles 1", "--inputs takes the place of --image, --prompt, --system and"),
        ("--image a.png", "give --prompt (and --image), or --inputs and --dump"),
        ("--prompt a --threads -1", "--threads -1: expected 0 or more"),
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
    assert describe(STATS) == (
        "fastmmoe: visual tokens 1,792 -> 1,500 -> 1,344, text tokens 1,200, retention 0.75, pruning rate 0.25\n"
        "prefill 6.000 GFLOPs (25.0% less), first token after 121 ms (vision 20, prefill 100), decode 2.5 ms/token, "
        "provider cuda"
    )
    assert describe(replace(STATS, decode_ms=[])).endswith("decode none, provider cuda")


def test_a_request_in_json() -> None:
    found = json.loads(json.dumps(stats_dict(STATS)))
    derived = {"pruning_rate": 0.25, "ttft_ms": 121.4, "flops_reduction": 0.25}
    assert {name: found[name] for name in derived} == pytest.approx(derived)
    assert found.keys() == {f.name for f in fields(RequestStats)} - {"kept_index"} | derived.keys()
    assert found["kept_visual_tokens"] == [1500, 1344] and found["decode_ms"] == [2.0, 3.0]


class Speaker:
    """Answers "h" and "\u00e9"; keeps what it is asked."""

    asked: ClassVar[list[Any]] = []

    def __init__(self, *arguments: object, **options: object) -> None:
        self.asked[:] = [(arguments, options)]

    def generate_stream(self, messages: Any, **options: Any) -> Iterator[Piece]:
        """Two pieces."""
        self.asked.append((messages, options))
        return iter([Piece("h", 1, None, STATS), Piece("\u00e9", 2, "stop", STATS)])

    def generate(self, messages: Any, **options: Any) -> Answer:
        """Both at once."""
        return Answer.of(list(self.generate_stream(messages, **options)))


def test_what_a_run_asks_and_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(vlm, "VLM", Speaker)
    pictures = ["--image", "a.png", "--image", "b.png"]
    question = [*pictures, "--prompt", "Why?", "--system", "Be brief.", "--pruning-rate", "0.25", "--max-tiles", "2"]
    assert main(["run", "out", *question, "--threads", "1", "--no-verify"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == ("h\u00e9\n", describe(STATS) + "\n")
    loaded, (messages, options) = Speaker.asked
    assert loaded == ((Path("out"),), {"provider": "auto", "portable": False, "threads": 1, "verify": False})
    parts = [{"type": "image", "image": "a.png"}, {"type": "image", "image": "b.png"}, {"type": "text", "text": "Why?"}]
    assert messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    given = {name: value for name, value in options.items() if value is not None}
    assert given == {"pruning_rate": 0.25, "max_tiles": 2, "seed": 0, "max_new_tokens": 64}


def test_an_answer_in_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(vlm, "VLM", Speaker)
    assert main(["run", "out", "--prompt", "Why?", "--json"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert (found["text"], found["token_ids"], found["finish_reason"]) == ("h\u00e9", [1, 2], "stop")
    assert found["channels"] == {} and found["tiles"] == 7 and output.err == "" and "h\u00e9" in output.out


def test_limits_of_a_build_reach_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[Any] = []

    def built(directory: Path, options: BuildOptions, *, say: Any, verify: bool) -> Any:
        given.append((directory, options, verify))
        say("building")
        return SimpleNamespace(files={"vision.engine": None, "embedding.engine": None})

    def shown(directory: Path, options: BuildOptions, *, say: Any, verify: bool) -> None:
        given.append((directory, options, verify))
        say("trtexec")

    monkeypatch.setattr(build, "build_engines", built)
    monkeypatch.setattr(build, "show_commands", shown)
    assert main(["build", "out", "--max-tokens", "9", "--max-tiles", "2", "--max-batch", "4", "--workspace", "5"]) == 0
    assert given == [(Path("out"), BuildOptions(max_tokens=9, max_tiles=2, max_batch=4, workspace_mib=5), True)]
    assert capsys.readouterr().out == "building\nwrote vision.engine, embedding.engine in out\n"
    assert main(["build", "out", "--dry-run", "--max-tokens", "9", "--no-verify"]) == 0
    assert given[1:] == [(Path("out"), BuildOptions(max_tokens=9), False)]
    assert capsys.readouterr().out == "trtexec\n"
