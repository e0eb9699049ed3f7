# SPDX-License-Identifier: Apache-2.0
"""fastmmoe golden: files with which other programs run and check a bundle."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastmmoe.runtime.cli.command import add_no_verify, check_modules
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import size_text

GOLDEN_DESCRIPTION = """Write inputs and outputs of a bundle's graphs, of one request with random pixels and words, in
Polygraphy's own JSON, and a script that makes other legal inputs. Needs polygraphy and a bundle of --target cpu."""


def add_interop_commands(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    golden = commands.add_parser("golden", help="write golden files for Polygraphy", description=GOLDEN_DESCRIPTION)
    golden.add_argument("bundle", type=Path, metavar="OUT", help="the bundle's directory")
    golden.add_argument("directory", type=Path, metavar="DIR", help="where to write; files in it are replaced")
    golden.add_argument("--retention", type=float, metavar="R", help="of the prompt (default: the bundle's)")
    golden.add_argument("--seed", type=int, default=0, metavar="N", help="of pixels and words (default %(default)s)")
    add_no_verify(golden)
    golden.add_argument("--json", action="store_true", help="one JSON object instead of text")
    golden.set_defaults(function=_golden)


def _golden(arguments: argparse.Namespace) -> int:
    check_modules("golden", ("polygraphy",), "polygraphy")
    from fastmmoe.runtime.interop.golden import DATA_LOADER, TOKENS, write_golden
    from fastmmoe.runtime.request.options import RequestOptions

    if arguments.seed < 0:
        raise InvalidRequest(f"--seed {arguments.seed}: expected 0 or more")
    options = RequestOptions(retention=arguments.retention, max_new_tokens=TOKENS)
    verify = not arguments.no_verify
    found = write_golden(arguments.bundle, arguments.directory, options, seed=arguments.seed, verify=verify)
    loader = arguments.directory / DATA_LOADER
    if arguments.json:
        print(json.dumps({"graphs": [asdict(one) for one in found], "data_loader": str(loader)}, default=str))
        return 0
    for one in found:
        print(f"{one.graph}: {one.calls} call(s), {size_text(one.bytes)} in {one.inputs.name}, {one.outputs.name}")
        print("\n".join(f"  {command}" for command in one.commands))
    print(f"other inputs: --data-loader-script {loader} (or {loader}:vision, {loader}:embedding)")
    return 0
