# SPDX-License-Identifier: Apache-2.0
"""--print-completion: what a shell needs to complete a command's options, choices and files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from fastmmoe.runtime.cli.command import check_modules

SHELLS = ("bash", "zsh", "fish", "tcsh")


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Add the option to a command's parser; it prints the script for all subcommands and ends the command."""
    parser.add_argument(
        "--print-completion", action=_PrintCompletion, choices=SHELLS, metavar="SHELL", help=f"for {', '.join(SHELLS)}"
    )


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, option: str | None = None) -> NoReturn:
        check_modules("--print-completion", ("shtab",), "completion")
        import shtab

        _complete_files(parser, shtab.FILE)
        print(shtab.complete(parser, shell))
        parser.exit()


def _complete_files(parser: argparse.ArgumentParser, file: Any) -> None:
    """Have every value that is text or a path complete as a file's name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, file)
        elif action.nargs != 0 and action.choices is None and action.type in (None, Path):
            action.complete = file  # type: ignore[attr-defined]
