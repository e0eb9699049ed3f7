# SPDX-License-Identifier: Apache-2.0
"""fastmmoe golden, fastmmoe triton: files with which other programs check and serve a bundle."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from fastmmoe.runtime.backends.settings import AUTO, PROVIDERS
from fastmmoe.runtime.cli.command import add_no_verify, check_modules
from fastmmoe.runtime.cli.output import add_json, print_json
from fastmmoe.runtime.cli.values import share
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import check_parent, size_text
from fastmmoe.runtime.machines.threads import check_threads

GOLDEN_DESCRIPTION = """Write inputs and outputs of a bundle's graphs, of one request with random pixels and words, in
Polygraphy's own JSON, and a script that makes other legal inputs. Needs polygraphy and a bundle of --target cpu."""


TRITON_DESCRIPTION = """Write a model repository for Triton Inference Server, whose Python backend runs the bundle with
streaming and batching, and examples for Kubernetes and KServe, and print the line that serves it. The bundle stays
where it is."""


def add_interop_commands(commands: Any) -> None:
    """Add the two commands to a parser's subcommands."""
    _add_golden(commands)
    _add_triton(commands)


def _add_golden(commands: Any) -> None:
    golden = commands.add_parser("golden", help="write golden files for Polygraphy", description=GOLDEN_DESCRIPTION)
    golden.add_argument("bundle", type=Path, metavar="OUT", help="the bundle's directory")
    golden.add_argument("directory", type=Path, metavar="DIR", help="where to write; files in it are replaced")
    golden.add_argument("--retention", type=share, metavar="R", help="of the prompt (default: the bundle's)")
    golden.add_argument("--seed", type=int, default=0, metavar="N", help="of pixels and words (default %(default)s)")
    add_no_verify(golden)
    add_json(golden)
    golden.set_defaults(function=_golden)


def _add_triton(commands: Any) -> None:
    triton = commands.add_parser(
        "triton", help="write a model repository for Triton Inference Server", description=TRITON_DESCRIPTION
    )
    triton.add_argument("bundle", type=Path, metavar="OUT", help="the bundle's directory")
    triton.add_argument("directory", type=Path, metavar="DIR", help="where to write; files in it are replaced")
    triton.add_argument("--name", default="fastmmoe", help="of the model (default %(default)s)")
    numbers = {
        "--instances": (1, "processes, each of which loads the bundle (default %(default)s)"),
        "--max-batch": (None, "most requests of one packed call (default: what the engines take, or 8)"),
        "--queue-delay-us": (1000, "microseconds that a request waits for others (default %(default)s)"),
        "--threads": (0, "of an instance on the CPU; 0 = one per core (default)"),
        "--replicas": (2, "machines, in the examples for clusters (default %(default)s)"),
    }
    for option, (default, text) in numbers.items():
        triton.add_argument(option, type=int, default=default, metavar="N", help=text)
    triton.add_argument("--provider", choices=PROVIDERS, default=AUTO, help="what runs it (default: the best there is)")
    triton.add_argument("--bundle-path", metavar="PATH", help="where the server sees the bundle (default: where it is)")
    triton.add_argument("--image", help="container image with tritonserver (default: a release of NVIDIA's)")
    add_no_verify(triton)
    add_json(triton)
    triton.set_defaults(function=_triton)


def _golden(arguments: argparse.Namespace) -> int:
    check_parent(arguments.directory)
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
        print_json({"graphs": [asdict(one) for one in found], "data_loader": loader})
        return 0
    for one in found:
        calls = "1 call" if one.calls == 1 else f"{one.calls} calls"
        print(f"{one.graph}: {calls}, {size_text(one.bytes)} in {one.inputs.name}, {one.outputs.name}")
        print("\n".join(f"  {command}" for command in one.commands))
    print(f"other inputs: --data-loader-script {loader} (or {loader}:vision, {loader}:embedding)")
    return 0


def _triton(arguments: argparse.Namespace) -> int:
    from fastmmoe.runtime.interop.triton_repository import RepositoryOptions, write_repository

    check_threads("--threads", arguments.threads)
    check_parent(arguments.directory)
    names = {field.name for field in fields(RepositoryOptions)}
    given = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    options = RepositoryOptions(**given)
    verify = not arguments.no_verify
    found = write_repository(arguments.bundle, arguments.directory, options, verify=verify)
    if arguments.json:
        print_json(asdict(found))
        return 0
    print(f"model repository: {found.models} ({found.config})\nclusters: {found.kubernetes}, {found.kserve}")
    print(f"serve it: {found.launch}")
    return 0
