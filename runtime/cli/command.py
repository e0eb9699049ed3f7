# SPDX-License-Identifier: Apache-2.0
"""Parts of all commands: arguments, one-line errors with exit code 2, clean ends on signals, pipes and memory."""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fastmmoe.runtime.backends.distribution import MODULE as ONNXRUNTIME
from fastmmoe.runtime.backends.distribution import check_onnxruntime
from fastmmoe.runtime.backends.settings import AUTO, PROVIDERS
from fastmmoe.runtime.cli.start import INTERRUPTED, NOTHING, SIGNALS, ending, open_missing_streams
from fastmmoe.runtime.errors import FastmmoeError, InvalidRequest, did_you_mean, without_breaks

USER_ERROR = 2
BROKEN_PIPE = 128 + signal.SIGPIPE
"""What a shell says of a process that the signal ended."""
REPEAT_SECONDS = 0.05
MEMORY_HINT = "end other programs, or use a machine with more memory"

_NO_MEMORY = re.compile(
    r"can(no|')t allocate memory(?! in static)|not enough memory|bad_alloc|failed to allocate memory|"
    r"unable to allocate|failed to map segment",
    re.IGNORECASE,
)
_NEEDED_BYTES = re.compile(r"allocate (\d+) bytes|of size (\d+)")
_NEEDED_TEXT = re.compile(r"allocate ([\d.]+ \w*B)\b")


class OutOfMemory(FastmmoeError):
    """Memory that the work needs is not there."""


class _Formatter(argparse.HelpFormatter):
    """Breaks a usage's line between alternatives, too, where it is wider than the terminal."""

    def _format_usage(self, *arguments: Any) -> str:
        return "\n".join(part for line in super()._format_usage(*arguments).split("\n") for part in self._parts(line))

    def _parts(self, line: str) -> Iterator[str]:
        indent = " " * (len(line) - len(line.lstrip()) + 1)
        while len(line) > self._width and (end := line.rfind(" |", len(indent), self._width)) > 0:
            yield line[:end]
            line = f"{indent}{line[end + 1 :]}"
        yield line


class ArgumentParser(argparse.ArgumentParser):
    """Argument errors are one line that names the help, without the usage block, and what may have been meant."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": _Formatter} | options)

    def error(self, message: str) -> NoReturn:
        # A subcommand's parser is called "fastmmoe run"; every error line starts with the command alone.
        command = self.prog.split()[0]
        self.exit(USER_ERROR, f"{command}: error: {without_breaks(message)} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown arguments here already: a subcommand's parser alone knows what is close to them."""
        found, unknown = super().parse_known_args(args, namespace)
        self._take_late(found, unknown)
        if unknown:
            hints = dict.fromkeys(filter(None, map(self._hint, unknown)))
            self.error(f"unrecognized arguments: {' '.join(unknown)}{''.join(hints)}")
        return found, unknown

    def _take_late(self, found: Any, unknown: list[str]) -> None:
        """Let what may be left out come behind options, too: argparse gives it its default in front of them."""
        for action in self._get_positional_actions():
            late = [argument for argument in unknown if not argument.startswith("-")]
            if late and action.nargs == argparse.OPTIONAL and getattr(found, action.dest) is action.default:
                unknown.remove(late[0])
                setattr(found, action.dest, self._get_values(action, late[:1]))

    def _hint(self, unknown: str) -> str:
        option = unknown.partition("=")[0]
        if not option.startswith("-"):
            # As other programs take them.
            is_request = {"--image", "--prompt"} <= self._option_string_actions.keys()
            return "; pictures and questions have names: --image FILE --prompt TEXT" if is_request else ""
        names = [_shown(action) for action in self._get_positional_actions()]
        if option.lstrip("-").upper().startswith(tuple(names)):
            return f"; what has no name comes in this order: {self.prog} {' '.join(names)}"
        return did_you_mean(option, self._option_string_actions)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise


def _shown(positional: argparse.Action) -> str:
    return str(positional.metavar or positional.dest).upper()


def add_provider(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that run a bundle."""
    parser.add_argument(
        "--provider",
        choices=PROVIDERS,
        default=AUTO,
        help="what runs it (default: the best that bundle and machine have)",
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="0 = one per core (default)")
    parser.add_argument(
        "--spinning", action="store_true", help="idle threads keep their cores: faster where nothing else runs"
    )


def add_no_verify(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that open a bundle."""
    parser.add_argument(
        "--no-verify", action="store_true", help="trust the bundle's files: compare names and sizes, no SHA-256"
    )


def check_text(option: str, text: str | None) -> None:
    """Raise InvalidRequest where an argument's bytes are no text in the locale's encoding."""
    if text is None or not any("\ud800" <= letter <= "\udfff" for letter in text):
        return
    encoding = sys.getfilesystemencoding().upper()
    advice = "give UTF-8" if encoding == "UTF-8" else "set LC_ALL=C.UTF-8, and give UTF-8"
    raise InvalidRequest(f"{option} {ascii(text)[:80]}: is not valid {encoding} in this locale; {advice}")


def run_command(name: str, command: Callable[[], int]) -> int:
    """Run a command and return its exit code; what the user can mend is printed as one line."""
    open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        # What a terminal cannot show, a path that is no text included, is no reason to end.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    interrupts = _take_signals(name)
    sys.unraisablehook = _interrupt_again
    # What Pillow warns of is either an error here or changes nothing; its lines would stand among the command's own.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with _flushed_output(), saying_what_memory_lacks(MEMORY_HINT):
            return command()
    except BrokenPipeError:
        # Nobody reads any more.
        return BROKEN_PIPE
    except KeyboardInterrupt as interrupt:
        return _interrupted(name, str(interrupt))
    except Exception as error:
        # An interrupt that lands in compiled code, as in torch's import, may come out as any error.
        if interrupts.came:
            return _interrupted(name, "")
        if not isinstance(error, FastmmoeError | OSError):
            raise
        print(f"{name}: error: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR


@contextmanager
def _flushed_output() -> Iterator[None]:
    """Have what cannot be printed end the command here, not as a remark of Python's at its end."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError:
        try:
            sys.stdout.flush()
        except OSError:
            # What is still in the buffer goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _one_line(error: FastmmoeError | OSError) -> str:
    if isinstance(error, FastmmoeError):
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    return without_breaks(f"{where}{error.strerror or error}")


def _interrupted(name: str, left: str) -> int:
    # A terminal that was closed takes no line.
    with suppress(OSError):
        print(f"{name}: interrupted; {left or NOTHING}", file=sys.stderr)
    return INTERRUPTED


@contextmanager
def saying_what_memory_lacks(hint: str) -> Iterator[None]:
    """Have memory that does not suffice end the command with one line: what was needed, and the hint.

    Raises:
        OutOfMemory: instead of MemoryError, and of what torch and ONNX Runtime raise.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        # Neither library has a class of its own for it.
        text = str(error)
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(text):
            raise
        raise OutOfMemory(f"not enough memory{_needed(text)}: {hint}") from error


def _needed(text: str) -> str:
    by_bytes, by_text = _NEEDED_BYTES.search(text), _NEEDED_TEXT.search(text)
    if by_bytes:
        return f" for {int(by_bytes[by_bytes.lastindex or 0]) / 1e6:,.1f} MB more"
    return f" for {by_text[1]} more" if by_text else ""


def check_modules(work: str, modules: Sequence[str], extra: str) -> None:
    """Raise InvalidRequest where modules that the work needs besides the base installation are not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidRequest(f"{work} needs {', '.join(missing)}: pip install 'fastmmoe[{extra}]'")


def check_installed(work: str, modules: Sequence[str], extra: str) -> None:
    """See that these modules and ONNX Runtime are installed.

    Raises:
        InvalidRequest: modules are not.
        BackendMissing: see `check_onnxruntime`.
    """
    check_modules(work, modules, extra if importlib.util.find_spec(ONNXRUNTIME) else f"cpu,{extra}")
    check_onnxruntime()


@contextmanager
def leaving(left: str) -> Iterator[None]:
    """Have an interrupt of what is done inside say what is there, instead of that nothing was written."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(left) from None


def resumable(directory: Path) -> AbstractContextManager[None]:
    """Have an interrupt of what is done inside say that the same command goes on with what is in the directory."""
    return leaving(f"the same command goes on with what is in {directory}")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off interrupts and terminations to the end of what is done inside."""
    came: list[int] = []
    with _handling_signals(lambda number, _: came.append(number)):
        yield
    if came:
        raise KeyboardInterrupt


@contextmanager
def preparing(name: str) -> Iterator[None]:
    """Have an interrupt end the process at once, while a command that has written nothing yet plans or imports torch.

    Raised in the midst of a compiled module, an interrupt becomes any other error, is lost, aborts or crashes.
    """
    with _handling_signals(ending(name)):
        yield


@contextmanager
def abandoning(leave: Callable[[], str]) -> Iterator[None]:
    """Have an interrupt end a command's process at once, while compiled code calls Python, as torch's tracing does.

    See `preparing` for why. Outside of `run_command` interrupts stay what they are.

    Args:
        leave: removes what is not to be left behind, and says what is there; "" = nothing was written.
    """
    taken = next((h for h in map(signal.getsignal, SIGNALS) if isinstance(h, _Interrupts)), None)
    if taken is None:
        yield
        return
    name = taken.name

    def end(*_: object) -> NoReturn:
        # Removing takes a while, and a second interrupt would leave the rest.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        left = ""
        with suppress(OSError):
            left = leave()
        ending(name, left)()

    with _handling_signals(end):
        yield


@contextmanager
def _handling_signals(handler: Callable[[int, object], object]) -> Iterator[None]:
    # Handlers run in the main thread only; a mask would not help, as the system may take another thread for the signal.
    numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    # What a shell starts in the background ignores interrupts, what nohup starts the end of its terminal.
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@dataclass
class _Interrupts:
    """The handler of a command's signals: they unwind, so that scratch directories are removed.

    Attributes:
        name: of the command.
        came: those that came, as they do.
    """

    name: str
    came: list[int] = field(default_factory=list)

    def __call__(self, number: int, _: object) -> NoReturn:
        self.came.append(number)
        raise KeyboardInterrupt


def _take_signals(name: str) -> _Interrupts:
    interrupts = _Interrupts(name)
    for number in SIGNALS:
        # What a shell starts in the background ignores interrupts, what nohup starts the end of its terminal.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupts)
    return interrupts


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Repeat an interrupt that landed in a destructor or the callback of a weak reference, where Python drops it."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    # Later and from another thread: raised at once, it would end this hook and be lost again.
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    timer = threading.Timer(REPEAT_SECONDS, signal.pthread_kill, (main_thread, signal.SIGTERM))
    timer.daemon = True
    timer.start()
