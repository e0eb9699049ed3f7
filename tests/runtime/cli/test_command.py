# SPDX-License-Identifier: Apache-2.0
"""How commands end where output, memory or a signal stops them; what wrong arguments are answered with."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastmmoe.runtime.cli.command import (
    SIGNALS,
    ArgumentParser,
    OutOfMemory,
    abandoning,
    saying_what_memory_lacks,
    uninterrupted,
)

SECONDS = 30
BUFFERED = {"PYTHONUNBUFFERED": ""}
"""As users have it: what is printed is written at the end."""


def run(body: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A process whose command has this body."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    program = "import os, signal, sys, time\nfrom fastmmoe.runtime.cli.command import *\n"
    program += f"def command():\n{lines}\n    return 0\n"
    program += "sys.exit(run_command('name', command))"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        check=False,
        timeout=SECONDS,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_shows_every_character(encoding: str) -> None:
    result = run("print('[✓] 你好', sys.argv[1])", "\udcff.png", PYTHONIOENCODING=encoding)
    shown = "[✓] 你好".encode(encoding, "backslashreplace")
    assert (result.returncode, result.stderr, result.stdout) == (0, b"", shown + b" \\udcff.png\n")


def test_errors_of_paths_that_are_no_text() -> None:
    result = run("open(sys.argv[1])", "no\udcff\udcfe")
    assert result.returncode == 2
    assert result.stderr == b"name: error: no\\udcff\\udcfe: No such file or directory\n"


@pytest.mark.parametrize("body", ["print('a\\n' * 200_000)", "print('a')", "print('a' * 9000); sys.exit(0)"])
def test_a_pipe_that_nobody_reads_ends_in_silence(body: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = f"from fastmmoe.runtime.cli.command import *\ndef command():\n    {body}\n    return 0\n"
    program += "sys.exit(run_command('name', command))"
    with os.fdopen(writer, "wb") as pipe:
        result = subprocess.run(
            [sys.executable, "-c", f"import sys\n{program}"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
            env=os.environ | BUFFERED,
        )
    assert (result.returncode, result.stderr) == (141, b"")


def test_a_full_disk_under_the_output() -> None:
    program = "import sys\nfrom fastmmoe.runtime.cli.command import *\ndef command():\n    print('a')\n    return 0\n"
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        result = subprocess.run(
            [sys.executable, "-c", program + "sys.exit(run_command('name', command))"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            env=os.environ | BUFFERED,
        )
    assert (result.returncode, result.stderr) == (2, b"name: error: No space left on device\n")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize(("body", "code"), [("print('a')", 0), ("open('/nowhere')", 2), ("os.write(2, b'x')", 0)])
def test_streams_that_are_closed(closed: tuple[int, ...], body: str, code: int, tmp_path: Path) -> None:
    # What the command opens must not become its output.
    program = "import os, sys\nfrom fastmmoe.runtime.cli.command import *\n"
    program += f"def command():\n    file = open('file', 'w')\n    {body}\n    file.write('mine')\n    return 0\n"
    program += "sys.exit(run_command('name', command))"
    shell = f'exec "$@" {" ".join(f"{number}>&-" for number in closed)}'
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS, cwd=tmp_path)
    output = {"print('a')": b"a\n"}.get(body, b"")
    errors = {2: b"name: error: /nowhere: No such file or directory\n"}.get(code, b"x" if "write" in body else b"")
    assert result.returncode == code
    assert result.stdout == (b"" if 1 in closed else output)
    assert result.stderr == (b"" if 2 in closed else errors)
    assert (tmp_path / "file").read_text() == ("" if code else "mine")


@pytest.mark.parametrize("module", ["fastmmoe.runtime.cli.main", "fastmmoe.exporter.cli"])
def test_help_that_nobody_sees(module: str) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", module, "--help"]
    result = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS)
    assert (result.returncode, result.stderr) == (0, b"")


MEMORY = {
    "Python": (MemoryError(), "not enough memory: lower --jobs"),
    "NumPy": (
        MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64"),
        "not enough memory for 7.45 GiB more: lower --jobs",
    ),
    "torch": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "not enough memory for 4,000,000.0 MB more: lower --jobs",
    ),
    "ONNX Runtime": (
        Exception("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"),
        "not enough memory: lower --jobs",
    ),
    "ONNX Runtime's arena": (
        Exception("bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 123456789"),
        "not enough memory for 123.5 MB more: lower --jobs",
    ),
}

MEMORY["the loader"] = (
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    "not enough memory: lower --jobs",
)


@pytest.mark.parametrize("source", MEMORY)
def test_memory_that_does_not_suffice(source: str) -> None:
    error, words = MEMORY[source]
    with pytest.raises(OutOfMemory) as failure, saying_what_memory_lacks("lower --jobs"):
        raise error
    assert str(failure.value) == words


def test_other_errors_are_not_of_memory() -> None:
    with pytest.raises(ImportError, match="static TLS"), saying_what_memory_lacks("lower --jobs"):
        raise ImportError("libgomp.so.1: cannot allocate memory in static TLS block")
    with pytest.raises(RuntimeError, match="shape"), saying_what_memory_lacks("lower --jobs"):
        raise RuntimeError("shape [2] is invalid")


def test_memory_of_a_process() -> None:
    body = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); bytearray(1 << 31)"
    result = run(body)
    assert result.returncode == 2
    assert (
        result.stderr.startswith(b"name: error: not enough memory: end other programs")
        and result.stderr.count(b"\n") == 1
    )


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(
    "error", ["ImportError('numpy.core failed')", "SystemError('returned a result')", "KeyError(1)"]
)
def test_an_interrupt_that_comes_out_as_another_error(number: str, error: str) -> None:
    # Compiled modules turn an interrupt during their import into errors of their own.
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or a child of a test run in the background ignores it
    body = f"""
try:
    os.kill(os.getpid(), signal.{number})
    time.sleep(10)
except KeyboardInterrupt:
    raise {error} from None"""
    result = run(body.strip())
    assert (result.returncode, result.stderr) == (130, b"name: interrupted; nothing was written\n")


@pytest.mark.parametrize(
    "arguments", [("fastmmoe.exporter.cli", "demo", "out"), ("fastmmoe.runtime.cli.main", "calibrate", "demo")]
)
def test_memory_that_does_not_suffice_for_torch(arguments: tuple[str, ...], tmp_path: Path) -> None:
    module, *rest = arguments
    program = f"import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (200 << 20, -1)); sys.argv[1:] = {rest}\n"
    program += f"from {module} import main\nsys.exit(main())"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, timeout=SECONDS, cwd=tmp_path
    )
    assert result.returncode == 2, result.stderr
    assert b"error: not enough memory" in result.stderr and result.stderr.count(b"\n") == 1, result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_of_torchs_import(number: signal.Signals, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "fastmmoe.exporter.cli", "demo", "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        try:
            while b"libtorch" not in Path(f"/proc/{process.pid}/maps").read_bytes():
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(number)
            _, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert (process.returncode, errors) == (130, b"fastmmoe-export: interrupted; nothing was written\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_of_a_plan(number: signal.Signals, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    program = f"""
import os, sys
from fastmmoe.exporter import plan
from fastmmoe.exporter.cli import main
def interrupted(*_):
    try:
        os.kill(os.getpid(), {int(number)})
    except KeyboardInterrupt:
        os.abort()  # as compiled code may
plan.plan_export = interrupted
main(["demo", "out"])"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, timeout=SECONDS, cwd=tmp_path
    )
    assert (result.returncode, result.stderr) == (130, b"fastmmoe-export: interrupted; nothing was written\n")


def test_a_terminal_that_is_closed_interrupts(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    program = f"""
import sys, time
from pathlib import Path
from fastmmoe.runtime.cli.command import run_command
def command():
    try:
        Path({str(scratch)!r}).touch()
        print("working", flush=True)
        time.sleep({SECONDS})
    finally:
        Path({str(scratch)!r}).unlink()
    return 0
sys.exit(run_command("name", command))"""
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-c", program])
    assert os.read(terminal, 1) == b"w"
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert not scratch.exists()


def test_an_error_without_an_interrupt_keeps_its_traceback() -> None:
    result = run("raise SystemError('mine')")
    assert result.returncode == 1 and result.stderr.rstrip().endswith(b"SystemError: mine")


def test_an_interrupt_is_put_off_to_the_end_of_a_step() -> None:
    body = """
with uninterrupted():
    os.kill(os.getpid(), signal.SIGTERM)
    print('done')
print('not reached')"""
    result = run(body.strip())
    assert (result.returncode, result.stdout) == (130, b"done\n")
    assert result.stderr == b"name: interrupted; nothing was written\n"


def test_an_interrupt_of_an_import_ends_the_process_at_once() -> None:
    body = """
with preparing('name'):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    except BaseException:
        pass
print('not reached')"""
    result = run(body.strip())
    assert (result.returncode, result.stdout) == (130, b"")
    assert result.stderr == b"name: interrupted; nothing was written\n"


def test_an_interrupt_of_compiled_code_removes_what_is_unfinished_and_ends_the_process(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.touch()
    body = f"""
from pathlib import Path
def leave():
    os.kill(os.getpid(), signal.SIGINT)
    Path({str(scratch)!r}).unlink()
    return 'a half was kept'
with abandoning(leave):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    except BaseException:
        pass
print('not reached')"""
    result = run(body.strip())
    assert (result.returncode, result.stdout) == (130, b"")
    assert result.stderr == b"name: interrupted; a half was kept\n"
    assert not scratch.exists()


def test_interrupts_outside_of_commands_unwind() -> None:
    # A command that an earlier test ran in this process may have taken them.
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    try:
        with pytest.raises(KeyboardInterrupt), abandoning(lambda: pytest.fail("the process would end")):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    parser = ArgumentParser(prog="name")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser("run")
    run.add_argument("bundle", metavar="OUT")
    run.add_argument("--max-new-tokens", type=int)
    run.add_argument("--max-tiles", type=int)
    run.add_argument("--target", choices=("cpu", "jetson-orin", "rtx"))
    ask = commands.add_parser("ask")
    for option in ("bundle", "--image", "--prompt"):
        ask.add_argument(option)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(arguments)
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rnu", "out"), "invalid choice: 'rnu' (choose from 'run', 'ask'); did you mean run? (see name --help)"),
        (("run", "o", "--target", "jetson"), "did you mean jetson-orin? (see name run --help)"),
        (("run", "o", "--target", "h100"), "invalid choice: 'h100' (choose from 'cpu', 'jetson-orin', 'rtx') (see"),
        (("run", "o", "--tagret=rtx"), "unrecognized arguments: --tagret=rtx; did you mean --target? (see name run"),
        (("run", "o", "--max-tokens", "4"), "did you mean --max-new-tokens?"),
        (("run", "--out", "o"), "unrecognized arguments: --out; what has no name comes in this order: name run OUT"),
        (("run", "o", "--output", "p"), "what has no name comes in this order: name run OUT"),
        (("run", "o", "picture.png"), "unrecognized arguments: picture.png (see name run --help)"),
        (("ask", "o", "a.png", "Why?"), "arguments: a.png Why?; pictures and questions have names: --image FILE"),
        (("run", "o", "--zzz"), "unrecognized arguments: --zzz (see name run --help)"),
    ],
)
def test_what_was_meant(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refused(capsys, *arguments)


def test_interrupts_are_put_off() -> None:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    steps = []
    for number in handlers:
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            os.kill(os.getpid(), number)
            steps.append(number)
        assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert steps == list(handlers)
    with pytest.raises(ZeroDivisionError), uninterrupted():
        1 / 0  # noqa: B018


def test_what_may_be_left_out_comes_in_any_place(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(prog="fastmmoe")
    command = parser.add_subparsers(required=True).add_parser("make")
    command.add_argument("model")
    command.add_argument("out", nargs="?", type=Path, default=Path("default"))
    command.add_argument("--weights")
    for given in ("m o --weights w", "m --weights w o", "--weights w m o"):
        found = parser.parse_args(["make", *given.split()])
        assert (found.model, found.out, found.weights) == ("m", Path("o"), "w"), given
    assert parser.parse_args(["make", "m", "--weights", "w"]).out == Path("default")
    for given, unknown in (("m --weights w o p", "p"), ("m o --weights w p", "p"), ("m --wights w o", "--wights o")):
        with pytest.raises(SystemExit):
            parser.parse_args(["make", *given.split()])
        assert f"unrecognized arguments: {unknown}" in capsys.readouterr().err
