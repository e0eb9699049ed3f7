# SPDX-License-Identifier: Apache-2.0
"""fastmmoe report: measures a comparison bundle and writes its accuracy-latency report."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from fastmmoe.runtime.cli.command import check_installed, preparing, resumable, saying_what_memory_lacks
from fastmmoe.runtime.cli.output import Lines, add_output, print_json
from fastmmoe.runtime.cli.values import share, shares
from fastmmoe.runtime.files import check_parent

DESCRIPTION = """Measure accuracy, counted FLOPs and latency of every pruning method of a comparison bundle
(fastmmoe-export MODEL OUT --method all) on questions with known answers, and write report.html, report.md and
report.json. What was measured is kept in DIR/measured: the same command goes on where it stopped."""
MODULES = ("matplotlib", "jinja2", "onnx")
FAILED = 1
RETENTIONS = "0.9,0.8,0.7,0.6,0.5,0.4,0.3,0.2,0.1"


def add_report(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    report = commands.add_parser("report", help="accuracy and latency of every method", description=DESCRIPTION)
    report.add_argument("bundle", type=Path, metavar="BUNDLE", help="made with --method all")
    report.add_argument(
        "--data", default="builtin", metavar="DIR", help="pictures and questions.jsonl, or builtin (default)"
    )
    report.add_argument("--out", type=Path, metavar="DIR", help="where the report goes (default ./BUNDLE-report)")
    report.add_argument("--questions", type=int, metavar="N", help="default: 2000, of a directory all")
    report.add_argument("--retentions", type=shares, default=RETENTIONS, metavar="R,R,...", help="default %(default)s")
    report.add_argument("--min-quality", type=share, default=0.955, metavar="Q", help=_MIN_QUALITY)
    numbers = {
        "--seed": (0, "of the drawn scenes, and of the bootstrap"),
        "--seeds": (3, "of method random, averaged"),
        "--resamples": (10_000, "of the bootstrap"),
        "--requests": (40, "whose times are measured"),
        "--maps": (3, "scenes with pictures of what survives"),
    }
    for option, (default, text) in numbers.items():
        report.add_argument(option, type=int, default=default, metavar="N", help=f"{text} (default %(default)s)")
    report.add_argument("--jobs", type=int, metavar="N", help="questions answered at once (default: one per core)")
    report.add_argument(
        "--bench", type=Path, nargs="+", default=[], metavar="FILE", help="results of fastmmoe bench -o json, as rows"
    )
    report.add_argument("--check", action="store_true", help="exit code 1 unless both claims hold")
    add_output(report)
    report.set_defaults(function=_report)


_MIN_QUALITY = "accuracy over the full model's that the recommended setting is sure to keep (default %(default)s)"


def _report(arguments: argparse.Namespace) -> int:
    say = Lines.of(arguments)
    check_installed("the report", MODULES, "report")
    out = Path(f"{arguments.bundle.resolve().name}-report") if arguments.out is None else arguments.out
    check_parent(out)
    with preparing("fastmmoe"):
        from fastmmoe.calibration.report.build import ReportOptions, build_report
        from fastmmoe.calibration.report.page import HTML, NUMBERS

    options = ReportOptions(
        data=arguments.data,
        out=out,
        questions=arguments.questions,
        retentions=arguments.retentions,
        seeds=arguments.seeds,
        resamples=arguments.resamples,
        seed=arguments.seed,
        requests=arguments.requests,
        maps=arguments.maps,
        jobs=arguments.jobs,
        min_quality=arguments.min_quality,
        bench=tuple(arguments.bench),
        command=f"fastmmoe {shlex.join(sys.argv[1:])}",
    )
    hint = "lower --jobs, end other programs, or use a machine with more memory"
    with resumable(out), saying_what_memory_lacks(hint):
        report = build_report(arguments.bundle, options, say)
    for claim in report.claims:
        say(f"{'holds' if claim.holds else 'does not hold'}: {claim.found}")
    say(f"wrote {out / HTML}")
    if arguments.json:
        print_json(json.loads((out / NUMBERS).read_bytes()))
    return FAILED if arguments.check and not all(claim.holds for claim in report.claims) else 0
