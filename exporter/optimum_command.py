# SPDX-License-Identifier: Apache-2.0
"""optimum-cli export fastmmoe: the export as a command of Optimum, which finds it in distributions/optimum.

Optimum's own export refuses architectures that transformers does not know, before it asks what is registered for them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from fastmmoe.exporter.cli import DESCRIPTION, add_options, config_of, run
from fastmmoe.exporter.config import DEMO
from fastmmoe.runtime.cli.command import run_command
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.hub import checkpoint_of

COMMAND = "optimum-cli"
AUTO, TASK = "auto", "image-text-to-text"
TASKS = (AUTO, TASK, f"{TASK}-with-past")


class ExportFastmmoe(BaseOptimumCLICommand):  # type: ignore[misc]
    """Flags that Optimum's export has, too, mean what they mean there; the others are those of fastmmoe-export."""

    COMMAND = CommandInfo(name="fastmmoe", help="Export DeepSeek-VL2 or InternVL3.5 MoE with FastMMoE pruning inside.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.description = DESCRIPTION
        parser.add_argument(
            "-m",
            "--model",
            required=True,
            help=f"model id on huggingface.co, checkpoint directory, or {DEMO} = the built-in one",
        )
        parser.add_argument("out", type=Path, metavar="output", help="directory to make")
        parser.add_argument(
            "--task",
            default=AUTO,
            metavar="TASK",
            help=f"{', '.join(TASKS)} (default %(default)s); key-value caches are always in the graph",
        )
        parser.add_argument("--revision", help="branch, tag or commit of a model id (default: main)")
        add_options(parser)

    def run(self) -> None:
        """Export, and end the process with the exit code of fastmmoe-export where that is not 0."""
        code = run_command(COMMAND, lambda: export(self.args))
        if code:
            sys.exit(code)


def export(arguments: Any) -> int:
    """The export that parsed arguments ask for, and its exit code.

    Raises:
        InvalidRequest: another task; see `checkpoint_of` and `read_policy`.
    """
    if arguments.task not in TASKS:
        raise InvalidRequest(f"--task {arguments.task}: expected one of {', '.join(TASKS)}")
    if arguments.model != DEMO:
        arguments.model = str(checkpoint_of(arguments.model, arguments.revision))
    return run(config_of(arguments), COMMAND)
