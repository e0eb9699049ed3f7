# SPDX-License-Identifier: Apache-2.0
"""fastmmoe verify, fastmmoe inspect: whether a bundle is what was exported, and what it is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastmmoe.runtime.cli.output import Lines, add_json, add_output, print_json
from fastmmoe.runtime.errors import BundleMismatch

VERIFY_DESCRIPTION = """Compare every file of a bundle with what was exported, whatever has been verified before: names,
sizes, SHA-256, engines if there are any, and that its graphs fit the manifest where they run here."""
INSPECT_DESCRIPTION = """Show what is in a bundle. Its files are not hashed and nothing is run; of a damaged bundle what
can be read is shown, with what is wrong."""


def add_bundle_commands(commands: Any) -> None:
    """Add the two commands to a parser's subcommands."""
    verify = commands.add_parser("verify", help="check a bundle's files", description=VERIFY_DESCRIPTION)
    verify.add_argument("bundle", type=Path, metavar="OUT", help="the bundle's directory")
    add_output(verify)
    verify.set_defaults(function=_verify)
    inspect = commands.add_parser("inspect", help="show what is in a bundle", description=INSPECT_DESCRIPTION)
    inspect.add_argument("bundle", type=Path, metavar="OUT", help="the bundle's directory")
    add_json(inspect)
    inspect.set_defaults(function=_inspect)


def _verify(arguments: argparse.Namespace) -> int:
    from fastmmoe.runtime.bundle.manifest import load_manifest

    say, checks = Lines.of(arguments), []
    for check in _verified(arguments.bundle):
        say(f"[✓] {check}")
        checks.append(check)
    if arguments.json:
        manifest = load_manifest(arguments.bundle)
        size = sum(entry.bytes for entry in manifest.files.values())
        of_bundle = {"bundle": arguments.bundle, "model": manifest.model, "target": manifest.target}
        print_json(of_bundle | {"files": len(manifest.files), "bytes": size, "checks": checks})
    return 0


def _verified(directory: Path) -> Iterator[str]:
    from fastmmoe.runtime.backends.load import load_backend
    from fastmmoe.runtime.bundle.verification import verify_bundle
    from fastmmoe.runtime.machines.targets import find_target

    bundle = yield from verify_bundle(directory)
    target = find_target(bundle.manifest.target)
    if target is not None and target.backend == "onnxruntime":
        load_backend(bundle)
        yield "the graphs fit the manifest and each other"


def _inspect(arguments: argparse.Namespace) -> int:
    from fastmmoe.runtime.bundle.inspection import describe_bundle, inspect_bundle

    found = inspect_bundle(arguments.bundle)
    if arguments.json:
        print_json(found)
    else:
        print("\n".join(describe_bundle(arguments.bundle, found)))
    if found["damage"]:
        raise BundleMismatch(f"{arguments.bundle}: damaged in {len(found['damage'])} place(s): {found['damage'][0]}")
    return 0
