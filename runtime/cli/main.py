# SPDX-License-Identifier: Apache-2.0
"""fastmmoe: run a bundle, or build its engines. Heavy imports wait until the arguments are known to be good."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fastmmoe import __version__
from fastmmoe.runtime.cli.bench import add_bench
from fastmmoe.runtime.cli.bundle import add_bundle_commands
from fastmmoe.runtime.cli.command import ArgumentParser, add_no_verify, run_command
from fastmmoe.runtime.cli.completion import add_completion
from fastmmoe.runtime.cli.doctor import add_doctor
from fastmmoe.runtime.cli.flops import add_counting
from fastmmoe.runtime.cli.interop import add_interop_commands
from fastmmoe.runtime.cli.output import Lines, add_output, print_json
from fastmmoe.runtime.cli.profile import add_profile
from fastmmoe.runtime.cli.run import add_run
from fastmmoe.runtime.cli.watch import add_watch

BUILD_DESCRIPTION = """Build the TensorRT engines of a bundle, on the device they are for. Bundles of target rtx come
with engines; they may be built again, with other limits, on any x86-64 machine. The limits cost memory on the device.
Without options there is room for one picture of the most tiles, 512 tokens of text and an answer of 512 tokens."""
COMMANDS = "fastmmoe.commands"
"""Entry points: functions that add a subcommand which needs more than the runtime does (pyproject.toml)."""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(prog="fastmmoe", description="Run mixture-of-experts VLMs with FastMMoE.")
    parser.add_argument("--version", action="version", version=f"fastmmoe {__version__}")
    add_completion(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_run(commands)
    add_bench(commands)
    add_profile(commands)
    add_watch(commands)
    _add_build(commands)
    add_counting(commands)
    add_bundle_commands(commands)
    add_interop_commands(commands)
    add_doctor(commands)
    for command in entry_points(group=COMMANDS):
        command.load()(commands)
    return parser


def _add_build(commands: Any) -> None:
    build = commands.add_parser("build", help="build TensorRT engines", description=BUILD_DESCRIPTION)
    build.add_argument("bundle", type=Path, metavar="OUT", help="the bundle's directory; engines are written into it")
    limits = {
        "--max-tokens": "tokens of a prompt, visual ones included",
        "--max-visual": "visual tokens of a prompt",
        "--max-cache": "tokens of prompt and answer together",
        "--max-tiles": "tiles of a prompt's pictures, global views and thumbnails included",
        "--max-batch": "sequences at once (default: 1)",
    }
    for option, text in limits.items():
        build.add_argument(option, type=int, metavar="N", help=f"the most {text}")
    build.add_argument("--workspace", type=int, metavar="MIB", help="the most scratch memory of a layer (default: all)")
    build.add_argument(
        "--dry-run", action="store_true", help="print the trtexec command of each engine, and build nothing"
    )
    add_no_verify(build)
    add_output(build)
    build.set_defaults(function=_build)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 for what the user can mend; 130 when interrupted."""
    return run_command("fastmmoe", lambda: _call(build_parser().parse_args(argv)))


def _call(arguments: argparse.Namespace) -> int:
    code: int = arguments.function(arguments)
    return code


def _build(arguments: argparse.Namespace) -> int:
    import msgspec

    from fastmmoe.runtime.backends.tensorrt.build import BuildOptions, build_engines, show_commands

    options = BuildOptions(
        max_tokens=arguments.max_tokens,
        max_visual=arguments.max_visual,
        max_cache=arguments.max_cache,
        max_tiles=arguments.max_tiles,
        max_batch=arguments.max_batch,
        workspace_mib=arguments.workspace,
    )
    say, verify = Lines.of(arguments), not arguments.no_verify
    if arguments.dry_run:
        lines: list[str] = []
        show_commands(arguments.bundle, options, say=lines.append if arguments.json else say, verify=verify)
        if arguments.json:
            print_json({"lines": lines})
        return 0
    engines = build_engines(arguments.bundle, options, say=say, verify=verify)
    say(f"wrote {', '.join(engines.files)} in {arguments.bundle}")
    if arguments.json:
        print_json(msgspec.to_builtins(engines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
