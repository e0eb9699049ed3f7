# SPDX-License-Identifier: Apache-2.0
"""fastmmoe profile: where the time of vision, prefill and decoding goes."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmoe.runtime.cli.command import add_no_verify, add_provider, check_text
from fastmmoe.runtime.cli.output import add_json, print_json
from fastmmoe.runtime.cli.table import align, number
from fastmmoe.runtime.cli.values import IMAGE_HELP, read_pictures, share
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import check_new, write_atomically
from fastmmoe.runtime.machines.threads import check_threads
from fastmmoe.runtime.method.policy import METHODS

if TYPE_CHECKING:
    from fastmmoe.runtime.profiling.result import Phase, Profile

DESCRIPTION = """Show where the time of vision, prefill and decode steps goes, by part of the model, beside the least
time that this machine needs for it. Requests are measured without a profiler, then with one, which makes them
slower."""
REPETITIONS, WARM_UP, NEW_TOKENS = 5, 1, 16
WIDTH = 80
NOTHING = "-"


def add_profile(commands: Any) -> None:
    """Add the subcommand."""
    profile = commands.add_parser("profile", help="where the time goes, part by part", description=DESCRIPTION)
    profile.add_argument("bundle", type=Path, metavar="OUT", help="the bundle's directory")
    profile.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help=f"{IMAGE_HELP} (default: a drawn one)",
    )
    profile.add_argument("--prompt", metavar="TEXT", help="the question, about the pictures in front of it")
    profile.add_argument(
        "-r",
        "--retention",
        type=share,
        metavar="R",
        help="share of visual tokens to keep (default: the bundle's)",
    )
    profile.add_argument("--method", choices=METHODS, help="of those in the bundle (default: the bundle's)")
    profile.add_argument("--max-tiles", type=int, metavar="N", help="the most local tiles of a picture")
    numbers = {
        "-n": ("--repetitions", REPETITIONS, "requests that count"),
        "-w": ("--warmup", WARM_UP, "requests before them"),
        "-t": ("--new-tokens", NEW_TOKENS, "tokens of every answer, whatever they are"),
    }
    for short, (option, default, text) in numbers.items():
        text = f"{text} (default %(default)s)"
        profile.add_argument(short, option, type=int, default=default, metavar="N", help=text)
    profile.add_argument("--nodes", type=int, default=0, metavar="N", help="also the N slowest nodes of each")
    profile.add_argument("--svg", type=Path, metavar="FILE", help="write a picture of it, too")
    add_provider(profile)
    profile.add_argument("--portable", action="store_true", help="without the native library (slow)")
    add_no_verify(profile)
    add_json(profile)
    profile.set_defaults(function=_profile)


def _profile(arguments: argparse.Namespace) -> int:
    from fastmmoe.runtime.bench.settings import BenchOptions
    from fastmmoe.runtime.bundle.manifest import load_manifest

    check_text("--prompt", arguments.prompt)
    check_threads("--threads", arguments.threads)
    if arguments.nodes < 0:
        raise InvalidRequest(f"--nodes {arguments.nodes}: expected 0 or more")
    if arguments.svg is not None:
        check_new(arguments.bundle, arguments.svg)
    retention = arguments.retention
    if retention is None:
        retention = load_manifest(arguments.bundle).policy.retention
    given = {} if arguments.prompt is None else {"prompt": arguments.prompt}
    options = BenchOptions(
        retentions=(retention,),
        repetitions=arguments.repetitions,
        warmup=arguments.warmup,
        new_tokens=arguments.new_tokens,
        images=tuple(read_pictures(arguments.image)),
        method=arguments.method,
        max_tiles=arguments.max_tiles,
        **given,
    )
    _show(_measure(arguments, options), arguments)
    return 0


def _measure(arguments: argparse.Namespace, options: Any) -> Profile:
    from fastmmoe.runtime.profiling.build import profile_bundle

    return profile_bundle(
        arguments.bundle,
        options,
        provider=arguments.provider,
        portable=arguments.portable,
        threads=arguments.threads,
        spinning=arguments.spinning,
        verify=not arguments.no_verify,
        say=_say,
    )


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def _show(profile: Profile, arguments: argparse.Namespace) -> None:
    import msgspec

    from fastmmoe.runtime.profiling.picture import draw

    if arguments.svg is not None:
        write_atomically(arguments.svg, draw(profile).encode())
    if arguments.json:
        print_json(msgspec.to_builtins(profile))
    else:
        print("\n".join(describe(profile, arguments.nodes)))


def describe(profile: Profile, nodes: int) -> Iterator[str]:
    """Lines: what was measured, then a table for each phase.

    Args:
        nodes: so many of the slowest nodes of each phase.
    """
    from fastmmoe.runtime.profiling.words import heading, title

    for line in heading(profile):
        yield from textwrap.wrap(line, WIDTH, subsequent_indent="  ")
    for phase in profile.phases:
        yield ""
        yield title(phase)
        yield from _table(phase)
        if nodes:
            yield "slowest nodes:"
            yield from (line[:WIDTH] for line in _nodes(phase, nodes))
    if profile.notes:
        yield ""
    for note in profile.notes:
        yield from textwrap.wrap(note, WIDTH)


def _table(phase: Phase) -> list[str]:
    from fastmmoe.runtime.profiling.parts import TITLES
    from fastmmoe.runtime.profiling.words import OUTSIDE

    rows = [["part", "ms", "share", "nodes", "GFLOPs", "MB", "least", "roofline"]]
    rows += [
        [
            TITLES[part.part],
            number(part.ms),
            f"{part.share:.1%}",
            str(part.nodes),
            _or_nothing(part.flops, 1e9),
            _or_nothing(part.bytes, 1e6),
            _or_nothing(part.least_ms, 1.0),
            NOTHING if part.roofline_share is None else f"{part.roofline_share:.0%}",
        ]
        for part in phase.parts
    ]
    rows.append([OUTSIDE, number(phase.outside_ms), f"{phase.outside_share:.1%}", *[NOTHING] * 5])
    rows.append(["together", number(phase.total_ms), "100.0%", str(len(phase.nodes)), *[NOTHING] * 4])
    return align(rows, left=1)


def _or_nothing(value: float | None, unit: float) -> str:
    return NOTHING if value is None else number(value / unit)


def _nodes(phase: Phase, count: int) -> list[str]:
    rows = [[f"{node.share:.1%}", number(node.ms), node.name] for node in phase.nodes[:count]]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{part:>{widths[0]}}  {ms:>{widths[1]}} ms  {name}" for part, ms, name in rows]
