# SPDX-License-Identifier: Apache-2.0
"""fastmmoe plan: will a model fit, and how fast can it be, before a weight is read. What computes is imported late."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fastmmoe.exporter.config import ExportConfig
from fastmmoe.exporter.format_options import add_formats
from fastmmoe.exporter.targets import DTYPES
from fastmmoe.runtime.cli.output import add_json, print_json
from fastmmoe.runtime.cli.values import shares
from fastmmoe.runtime.machines.devices import DEVICES
from fastmmoe.runtime.machines.targets import target_names

if TYPE_CHECKING:
    from fastmmoe.exporter.fit.plan import PlanOptions
    from fastmmoe.exporter.fit.text import Report

DESCRIPTION = """Say what a model will need and how fast it can be at most, from config.json alone: weights by part,
caches, activations, the build, FLOPs, and least times at several retentions. Exit code 0: it fits; 1: it does not, and
what does is said."""
RETENTIONS = (1.0, 0.5, 0.25)
DOES_NOT_FIT = 1


def add_plan(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    plan = commands.add_parser("plan", help="whether a model fits, and how fast it can be", description=DESCRIPTION)
    config = ExportConfig()
    plan.add_argument(
        "model", metavar="MODEL", help="directory with config.json, or a published model's name, as deepseek-vl2-small"
    )
    plan.add_argument(
        "--target",
        choices=tuple(dict.fromkeys((*target_names(), *DEVICES))),
        default=config.target,
        metavar="TARGET",
        help=f"as for an export, or one of its machines: {', '.join(DEVICES)} (default %(default)s: this machine)",
    )
    plan.add_argument("--memory", metavar="SIZE", help="of the machine, 16GB for example (default: its greatest)")
    plan.add_argument("--dtype", choices=DTYPES, help="default: the target's")
    plan.add_argument("--kv-cache-dtype", choices=DTYPES, help="default: the type of the activations")
    add_formats(plan)
    plan.add_argument(
        "-r",
        "--retention",
        type=shares,
        default=RETENTIONS,
        metavar="R,R,...",
        help=f"shares of visual tokens to keep (default {','.join(map(str, RETENTIONS))})",
    )
    plan.add_argument("--tiles", type=int, metavar="N", help="of the pictures (default: one of the most tiles)")
    plan.add_argument("--text-tokens", type=int, default=argparse.SUPPRESS, metavar="N", help="of the prompt")
    plan.add_argument("--new-tokens", type=int, default=argparse.SUPPRESS, metavar="N", help="of the answer")
    plan.add_argument(
        "--reserve", type=float, metavar="GB", help="left to others (default: 2 where system and GPU share memory, 1)"
    )
    add_json(plan)
    plan.set_defaults(function=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from fastmmoe.exporter.fit.text import as_json, describe

    report = make_report(arguments.model, _options(arguments), arguments.retention)
    if arguments.json:
        print_json(as_json(report))
    else:
        print("\n".join(describe(report)))
    return 0 if report.fit.fits else DOES_NOT_FIT


def _options(arguments: argparse.Namespace) -> PlanOptions:
    from fastmmoe.exporter.fit.plan import PlanOptions

    given = vars(arguments)
    stored = {f.name: given[f.name] for f in fields(ExportConfig) if f.name in given and f.name != "memory"}
    counts = {name: given[name] for name in ("text_tokens", "new_tokens") if name in given}
    return PlanOptions(
        target=arguments.target,
        memory=arguments.memory,
        tiles=arguments.tiles,
        reserve_gb=arguments.reserve,
        export=ExportConfig(**stored),
        **counts,
    )


def make_report(model: str, options: PlanOptions, retentions: tuple[float, ...] = RETENTIONS) -> Report:
    """All that the command says of a model.

    Raises:
        InvalidRequest, UnsupportedModel: options that the target or the model does not take; see `read_sizes`.
    """
    from fastmmoe.exporter.fit.plan import cheaper, find_machine, fit, larger_machine
    from fastmmoe.exporter.fit.sizes import read_sizes
    from fastmmoe.exporter.fit.text import Report
    from fastmmoe.exporter.fit.times import find_times

    machine = find_machine(options)
    sizes = read_sizes(model)
    found = fit(sizes, machine, options)
    times = find_times(machine, found, retentions, options.new_tokens)
    if found.fits:
        return Report(sizes, machine, found, times, (), None)
    others = tuple(cheaper(sizes, machine, options, found))
    return Report(sizes, machine, found, times, others, larger_machine(machine, found.needs.total))
