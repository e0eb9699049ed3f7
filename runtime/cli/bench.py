# SPDX-License-Identifier: Apache-2.0
"""fastmmoe bench: how fast a bundle is on this machine, and two such measurements beside each other."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmoe.runtime.backends.settings import AUTO
from fastmmoe.runtime.bench.settings import (
    NEW_TOKENS,
    PROMPT,
    REPETITIONS,
    RETENTIONS,
    WARMUP,
    BenchOptions,
    retentions_for,
)
from fastmmoe.runtime.cli.command import add_no_verify, add_provider, check_text, saying_what_memory_lacks
from fastmmoe.runtime.cli.values import IMAGE_HELP, read_pictures, shares
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import check_new, write_atomically
from fastmmoe.runtime.machines.threads import check_threads
from fastmmoe.runtime.method.policy import METHODS, UNMODIFIED
from fastmmoe.runtime.types import Say

if TYPE_CHECKING:
    from fastmmoe.runtime.bench.result import Result

DESCRIPTION = """Measure a bundle on this machine: vision, prefill at each retention, a decode step, time to the first
token and the whole request, each beside the least time that the machine could take. Or compare two measurements of a
bundle, which -o json wrote."""
FORMS = ("md", "csv", "json", "jsonl")
MEMORY_HINT = "lower --depth, --batch, --concurrency or --max-tiles, or end other programs"


def add_bench(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    bench = commands.add_parser("bench", help="measure a bundle's times on this machine", description=DESCRIPTION)
    bench.add_argument("bundle", type=Path, nargs="?", metavar="OUT", help="the bundle's directory")
    bench.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A.json", "B.json"), help="two measurements, instead of measuring"
    )
    shown = f"default {','.join(f'{value:g}' for value in RETENTIONS)}; of method {UNMODIFIED} 1"
    bench.add_argument(
        "-r", "--retention", type=shares, metavar="R,R,...", help=f"shares of visual tokens to keep ({shown})"
    )
    bench.add_argument(
        "-n",
        "--repetitions",
        type=int,
        metavar="N",
        help=f"requests of each setting that count (default {REPETITIONS})",
    )
    bench.add_argument("-w", "--warmup", type=int, metavar="N", help=f"requests before, that do not (default {WARMUP})")
    bench.add_argument("-o", choices=FORMS, metavar="FORM", help=f"{', '.join(FORMS)} (default md)")
    bench.add_argument("--json", action="store_true", help="as -o json: one JSON object instead of text")
    bench.add_argument("--image", action="append", metavar="FILE", help=f"{IMAGE_HELP} (default: a drawn one)")
    bench.add_argument("--prompt", metavar="TEXT", help=f"the question (default {PROMPT!r})")
    bench.add_argument(
        "-t", "--new-tokens", type=int, metavar="N", help=f"decoded by each request (default {NEW_TOKENS})"
    )
    bench.add_argument("--depth", type=counts, metavar="N,N,...", help="tokens of the prompt (default: as it is)")
    bench.add_argument("--batch", type=counts, metavar="N,N,...", help="sequences of a packed call (default 1)")
    bench.add_argument("--concurrency", type=counts, metavar="N,N,...", help="requests at once (default 1)")
    bench.add_argument("--method", choices=METHODS, help="of those in the bundle (default: the bundle's)")
    bench.add_argument("--max-tiles", type=int, metavar="N", help="the most local tiles of a picture")
    bench.add_argument("--export-times", type=Path, metavar="FILE", help="every request, as trtexec writes times")
    bench.add_argument(
        "--export-profile",
        type=Path,
        metavar="FILE",
        help="every node, as trtexec writes layers; of one kind of request",
    )
    add_provider(bench)
    bench.add_argument("--portable", action="store_true", help="without the native library (slow)")
    add_no_verify(bench)
    bench.set_defaults(function=_bench)


def counts(text: str) -> tuple[int, ...]:
    """The type of an option that takes several whole numbers, separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers such as 1,2,4") from error


def _bench(arguments: argparse.Namespace) -> int:
    form = _form(arguments)
    if arguments.compare is not None:
        return _compare(arguments, form)
    if arguments.bundle is None:
        raise InvalidRequest("give a bundle's directory, or --compare A.json B.json")
    options = _options(arguments)
    check_text("--prompt", arguments.prompt)
    check_threads("--threads", arguments.threads)
    _check_files(arguments)
    if arguments.export_profile is not None:
        options.check_one_kind("--export-profile")
    with saying_what_memory_lacks(MEMORY_HINT):
        result = _measure(arguments, options)
    from fastmmoe.runtime.cli.bench_text import write

    print("\n".join(write(result, form)))
    for note in result.notes:
        print(note, file=sys.stderr)
    return 0


def _check_files(arguments: argparse.Namespace) -> None:
    """Refuse files that cannot be written, that are a bundle's, or one for two."""
    files = [file for file in (arguments.export_times, arguments.export_profile) if file is not None]
    real = {check_new(arguments.bundle, file) for file in files}
    if len(real) < len(files):
        raise InvalidRequest(f"--export-times and --export-profile {files[0]}: give two files")


def _form(arguments: argparse.Namespace) -> str:
    if arguments.json and arguments.o not in (None, "json"):
        raise InvalidRequest(f"--json and -o {arguments.o}: give one")
    return "json" if arguments.json else arguments.o or "md"


def _options(arguments: argparse.Namespace) -> BenchOptions:
    given = {
        "retentions": arguments.retention,
        "depths": arguments.depth,
        "batches": arguments.batch,
        "concurrencies": arguments.concurrency,
        "repetitions": arguments.repetitions,
        "warmup": arguments.warmup,
        "new_tokens": arguments.new_tokens,
        "images": None if arguments.image is None else tuple(read_pictures(arguments.image)),
        "prompt": arguments.prompt,
        "method": arguments.method,
        "max_tiles": arguments.max_tiles,
    }
    return BenchOptions(**{name: value for name, value in given.items() if value is not None})


def _measure(arguments: argparse.Namespace, options: BenchOptions) -> Result:
    """Measure, and write what is exported."""
    from fastmmoe.runtime.backends.base import profilable
    from fastmmoe.runtime.bench.session import measure, profile_requests
    from fastmmoe.runtime.bench.trtexec import export_times
    from fastmmoe.runtime.vlm import VLM

    settings = {name: getattr(arguments, name) for name in ("provider", "portable", "threads", "spinning")}
    verify = not arguments.no_verify
    with _progress() as say, VLM(arguments.bundle, **settings, verify=verify) as vlm:
        if arguments.export_profile is not None:
            profilable(vlm.backend)
        if arguments.retention is None:
            options = replace(options, retentions=retentions_for(vlm.manifest.policy, options.method))
        loaded = {name: settings[name] for name in ("threads", "portable", "spinning")}
        result, rounds = measure(vlm, arguments.bundle, options, **loaded, say=say)
    exported = [(arguments.export_times, export_times(rounds))]
    if arguments.export_profile is not None:
        with _progress() as say, VLM(arguments.bundle, **settings, verify=verify, profile=True) as vlm:
            profile = profile_requests(vlm, options, lambda line: say(f"profile: {line}"))
        exported.append((arguments.export_profile, profile))
    # In the end, for whoever interrupts before is told that nothing was written.
    for file, found in exported:
        if file is not None:
            _export(file, found)
    return result


@contextmanager
def _progress() -> Iterator[Say]:
    """A line on a terminal that is written over by the next, and is gone in the end."""

    def say(line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    try:
        yield say
    finally:
        say("")


def _export(path: Path, found: list[dict[str, Any]]) -> None:
    lines = ",\n ".join(map(json.dumps, found))
    write_atomically(path, f"[{lines}]\n".encode())


def _compare(arguments: argparse.Namespace, form: str) -> int:
    import msgspec

    from fastmmoe.runtime.bench.comparison import compare
    from fastmmoe.runtime.cli.bench_text import compared

    if given := list(_measuring_options(arguments)):
        raise InvalidRequest(f"--compare reads what was measured: leave out {', '.join(given)}")
    if form not in ("md", "json"):
        raise InvalidRequest(f"-o {form}: a comparison is written as md or json")
    found = compare(*arguments.compare)
    print(json.dumps(msgspec.to_builtins(found)) if form == "json" else "\n".join(compared(found)))
    return 0


def _measuring_options(arguments: argparse.Namespace) -> Iterator[str]:
    """Those that were given."""
    if arguments.bundle is not None:
        yield str(arguments.bundle)
    names = (
        "retention",
        "repetitions",
        "warmup",
        "image",
        "prompt",
        "new_tokens",
        "depth",
        "batch",
        "concurrency",
        "method",
    )
    for name in (*names, "max_tiles", "export_times", "export_profile"):
        if getattr(arguments, name) is not None:
            yield f"--{name.replace('_', '-')}"
    # These have defaults.
    for name, default in (("provider", AUTO), ("threads", 0), ("portable", False), ("no_verify", False)):
        if getattr(arguments, name) != default:
            yield f"--{name.replace('_', '-')}"
