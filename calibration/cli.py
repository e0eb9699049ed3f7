# SPDX-License-Identifier: Apache-2.0
"""fastmmoe calibrate: finds the pruning settings of a model. Torch and optuna wait until the arguments are good."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fastmmoe.calibration.options import BACKENDS, FLOPS_REDUCTION, QUALITY_OPTIONS, CalibrationOptions
from fastmmoe.exporter.cli import MODEL_HELP, add_target
from fastmmoe.exporter.config import checkpoint_directory
from fastmmoe.runtime.cli.command import check_installed, preparing, resumable, saying_what_memory_lacks
from fastmmoe.runtime.cli.output import Lines, add_output, print_json
from fastmmoe.runtime.cli.values import share
from fastmmoe.runtime.files import check_parent

DESCRIPTION = """Find the pruning settings of a model on questions about pictures: quality against counted FLOPs of the
prefill. Writes policy.json, which fastmmoe-export --policy reads, after the exported graph has confirmed it; front.json
and calibration.md say what else was found. The search continues where an earlier one in OUT stopped."""
MODULES = ("torch", "onnx", "onnxscript", "safetensors", "optuna", "joblib")


def add_calibrate(commands: Any) -> None:
    """Add the command to a parser's subcommands; every default is that of `CalibrationOptions`."""
    d = CalibrationOptions()
    parser = commands.add_parser("calibrate", help="find pruning settings on your data", description=DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--data", default=d.data, metavar="DIR", help="pictures and questions.jsonl, or builtin (default)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go (default ./MODEL-calibration)")
    add_target(parser, d.target)
    _add_goal(parser)
    _add_search(parser)
    _add_machines(parser)
    parser.add_argument(
        "--activations",
        action="store_true",
        help="record the ranges of activations that quantisation needs, and do not search",
    )
    add_output(parser)
    parser.set_defaults(function=_calibrate)


def _add_goal(parser: argparse.ArgumentParser) -> None:
    goal = parser.add_argument_group("goal, one of").add_mutually_exclusive_group()
    goal.add_argument(
        "--flops-reduction",
        type=share,
        metavar="S",
        help=f"best quality that saves at least this share of the prefill (default {FLOPS_REDUCTION})",
    )
    goal.add_argument(
        "--min-quality", type=share, metavar="Q", help="fewest FLOPs at this share of the full model's quality"
    )
    goal.add_argument(
        "--max-ttft-ms", type=float, metavar="MS", help="best quality with the first token in time on this machine"
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    d, search = CalibrationOptions(), parser.add_argument_group("search")
    search.add_argument(
        "--trials", type=int, default=d.trials, metavar="N", help="in all, earlier runs counted (default %(default)s)"
    )
    search.add_argument(
        "--questions", type=int, metavar="N", help="to calibrate on (default: 600 drawn, or all of DIR)"
    )
    search.add_argument(
        "--search-questions", type=int, default=d.search_questions, metavar="N", help="of a trial (default %(default)s)"
    )
    search.add_argument(
        "--held-out-questions",
        type=int,
        default=d.held_out_questions,
        metavar="N",
        help="drawn for the last comparison (default %(default)s); of a directory a fifth of the pictures is held out",
    )
    search.add_argument(
        "--quality",
        choices=QUALITY_OPTIONS,
        default=d.quality,
        help="accuracy, kl to the full model, or auto = accuracy where there are answers (default)",
    )
    search.add_argument("--seed", type=int, default=d.seed, metavar="N", help="default %(default)s")


def _add_machines(parser: argparse.ArgumentParser) -> None:
    d, machines = CalibrationOptions(), parser.add_argument_group("machines")
    machines.add_argument("--jobs", type=int, default=d.jobs, metavar="N", help="trials at a time; 0 = one per core")
    machines.add_argument(
        "--threads", type=int, default=d.threads, metavar="N", help="of torch, in each trial (default %(default)s)"
    )
    machines.add_argument("--backend", choices=BACKENDS, default=d.backend, help="of joblib (default %(default)s)")
    machines.add_argument("--scheduler", metavar="ADDRESS", help="of the dask or ray cluster")


def read_arguments(arguments: argparse.Namespace) -> CalibrationOptions:
    """The options of a parsed command line, checked."""
    names = CalibrationOptions.__dataclass_fields__
    options = CalibrationOptions(**{name: getattr(arguments, name) for name in names})
    options.validate()
    return options


def _calibrate(arguments: argparse.Namespace) -> int:
    options, say = read_arguments(arguments), Lines.of(arguments)
    check_installed("calibration", MODULES, "calibrate")
    with preparing("fastmmoe"):
        from fastmmoe.exporter.checkpoint.reader import Checkpoint

        Checkpoint(checkpoint_directory(options.model))
        check_parent(options.directory)
        say(f"calibrating {options.model} in {options.directory}: loading torch ...")
        from fastmmoe.calibration.calibrate import calibrate

    # Ranges are written at the end only.
    goes_on = nullcontext() if options.activations else resumable(options.directory)
    with goes_on, saying_what_memory_lacks("lower --jobs, end other programs, or use a machine with more memory"):
        calibrate(options, say)
    if arguments.json:
        print_json(_plain(options))
    return 0


def _plain(options: CalibrationOptions) -> dict[str, Any]:
    """What --json prints of a calibration: what it wrote; docs/calibration.md has the fields."""
    out = options.directory
    names = () if options.activations else ("policy", "front")
    found = {name: json.loads((out / f"{name}.json").read_bytes()) for name in names}
    return {"out": out, "files": sorted(path.name for path in out.iterdir() if path.is_file())} | found
