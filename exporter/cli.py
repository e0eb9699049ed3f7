# SPDX-License-Identifier: Apache-2.0
"""fastmmoe-export, also called fastmmoe export: checkpoint directory -> bundle.

Torch is imported only once the arguments are known to be good.
"""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmoe import __version__
from fastmmoe.exporter.config import DEMO, ExportConfig
from fastmmoe.exporter.fit.cli import add_plan
from fastmmoe.exporter.format_options import add_formats
from fastmmoe.exporter.pruning.policy_file import read_policy
from fastmmoe.exporter.pruning.settings import EXPERT_FACTOR, FAMILY_ROWS, METHOD_OPTIONS, PolicyOptions
from fastmmoe.exporter.targets import ATOL, DTYPES
from fastmmoe.runtime.cli.command import (
    ArgumentParser,
    check_installed,
    leaving,
    preparing,
    run_command,
    saying_what_memory_lacks,
)
from fastmmoe.runtime.cli.completion import add_completion
from fastmmoe.runtime.cli.output import Lines, add_output, print_json
from fastmmoe.runtime.cli.values import share
from fastmmoe.runtime.machines.targets import TARGETS, target_names
from fastmmoe.runtime.method.policy import SETTINGS, Setting

if TYPE_CHECKING:
    from fastmmoe.exporter.export import Exported

DESCRIPTION = """Export a DeepSeek-VL2 or InternVL3.5 (MoE) checkpoint to a bundle: ONNX graphs with FastMMoE inside,
weights, tokenizer and manifest. The written graphs are checked against torch before OUT appears."""

COMMAND = "fastmmoe-export"
MODULES = ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors")
MODEL_HELP = f"checkpoint directory, or {DEMO} = the built-in one"
MEMORY_HINT = "end other programs, or export on a machine with more memory; --dtype fp16 stores experts in half of it"

_TYPES: dict[Any, Any] = {int: int, float: share}
"""Of a setting's value -> of its argument: all that are no whole numbers are shares."""


def build_parser() -> argparse.ArgumentParser:
    """The arguments of fastmmoe-export."""
    parser = ArgumentParser(prog=COMMAND, description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"fastmmoe {__version__}")
    add_completion(parser)
    _add_arguments(parser)
    return parser


def add_export(commands: Any) -> None:
    """Add the same command to a parser's subcommands, and the one that plans it."""
    add_plan(commands)
    parser = commands.add_parser("export", help="make a bundle of a checkpoint", description=DESCRIPTION)
    _add_arguments(parser)
    parser.set_defaults(function=lambda arguments: _run(arguments, "fastmmoe"))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    config = ExportConfig()
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "out",
        nargs="?",
        type=Path,
        default=config.out,
        metavar="OUT",
        help="directory to make (default ./MODEL-TARGET)",
    )
    add_options(parser)
    add_output(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all arguments but the model and the directory; every default is that of `ExportConfig` or `PolicyOptions`."""
    config = ExportConfig()
    add_target(parser, config.target)
    parser.add_argument(
        "--memory",
        default=config.memory,
        metavar="SIZE",
        help="memory of the target's device, 32GB for example (default: the greatest there is)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default=config.dtype, help=_dtype_help())
    parser.add_argument(
        "--kv-cache-dtype",
        choices=DTYPES,
        default=config.kv_cache_dtype,
        help="what the key-value caches store "
        "(default: the type of the activations, the only one on engine targets; cpu also takes bf16)",
    )
    add_formats(parser)
    parser.add_argument("--atol", type=float, default=config.atol, metavar="D", help=_atol_help())
    parser.add_argument(
        "--chat-template",
        choices=("builtin", "checkpoint"),
        default=config.chat_template,
        help="that of the model's official code, or the one that the checkpoint ships (default %(default)s)",
    )
    _add_output(parser)
    _add_pruning(parser.add_argument_group("pruning"))


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is a bundle")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep what is written when interrupted or killed, and go on with what an earlier run with --resume left",
    )


def add_target(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the option --target."""
    shown = ", ".join(name for name in TARGETS if "@" not in name)
    parser.add_argument(
        "--target",
        choices=target_names(),
        default=default,
        metavar="TARGET",
        help=f"{shown} (default %(default)s); jetson-orin is jetson-agx-orin; Jetsons are taken with JetPack 7.2, "
        "Orin has 6.2 too: jetson-orin@jp6.2",
    )


def _add_pruning(group: argparse._ArgumentGroup) -> None:
    """Options that are not given do not appear among the parsed ones, so that --policy keeps what it says of them."""
    rows = FAMILY_ROWS.values()
    add = functools.partial(group.add_argument, default=argparse.SUPPRESS)
    group.add_argument(
        "--policy",
        dest="policy_file",
        type=Path,
        metavar="FILE",
        help="policy.json of settings found for this model; options given beside it override single ones",
    )
    add(
        "--method",
        choices=METHOD_OPTIONS,
        help="pruning in the graph; all = a comparison bundle, each request chooses "
        f"(default {PolicyOptions().method})",
    )
    add(
        "--prune-layers",
        type=_layers,
        metavar="L,L,...",
        help="layers that prune, from 0 (default: "
        + "; ".join(f"{','.join(map(str, r.prune_layers))} of {r.layers}" for r in rows)
        + "; scaled to other depths; fastv 2: the first layer that runs on fewer tokens; sparsevlm 2,6,15 of 32)",
    )
    add(
        "--expert-factor",
        type=share,
        metavar="F",
        help=f"share of the experts that visual tokens use from layer 2 on (default {EXPERT_FACTOR})",
    )
    for setting in SETTINGS.values():
        kind: dict[str, Any] = {"choices": setting.choices} if setting.choices else {"type": _TYPES[setting.type]}
        kind |= {"metavar": setting.metavar} if setting.metavar else {}
        add(f"--{setting.name.replace('_', '-')}", help=f"{setting.what} (default {_default(setting)})", **kind)


def _default(setting: Setting) -> str:
    if setting.default is not None:
        return str(setting.default)
    return "by family: " + " / ".join(f"{getattr(row, setting.name):g}" for row in FAMILY_ROWS.values())


def read_arguments(argv: Sequence[str] | None) -> ExportConfig:
    """Parse the command line, and read the policy file that it names.

    Raises:
        InvalidRequest: as `read_policy`.
    """
    return config_of(build_parser().parse_args(argv))


def config_of(arguments: argparse.Namespace) -> ExportConfig:
    """The configuration that parsed arguments name; raises as `read_policy`."""
    given = vars(arguments)
    settings = {f.name: given[f.name] for f in fields(PolicyOptions) if f.name in given}
    policy = PolicyOptions() if arguments.policy_file is None else read_policy(arguments.policy_file).options()
    if "expert_factor" in settings:
        settings["visual_top_k"] = None
    others = {f.name: given[f.name] for f in fields(ExportConfig) if f.name in given}
    return ExportConfig(**others, policy=replace(policy, **settings))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where the check of the output fails; 2 for what the user can mend; 130 when interrupted."""
    return run_command(COMMAND, lambda: _run(build_parser().parse_args(argv), COMMAND))


def _run(arguments: argparse.Namespace, command: str) -> int:
    return run(config_of(arguments), command, Lines.of(arguments), is_json=arguments.json)


def run(config: ExportConfig, command: str, say: Lines | None = None, *, is_json: bool = False) -> int:
    """Export, and return the exit code.

    Args:
        command: what errors call the program.
        say: gets a line for each step; None = on stdout.
        is_json: print what was exported as one JSON object, too.
    Raises:
        InvalidRequest: see `check_installed`, `plan_export` and `run_export`.
    """
    say, start = say or Lines(), time.monotonic()
    check_installed("the export", MODULES, "export")
    # Threads of torch that wait would take the time of those that compute, where another program wants the cores, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with preparing(command):
        from fastmmoe.exporter.plan import plan_export

        plan = plan_export(config, say)
        say(f"exporting {plan.name} for {plan.target.name} to {plan.out}: loading torch ...")
        from fastmmoe.exporter.check.structure import CheckFailed
        from fastmmoe.exporter.export import run_export

    try:
        with saying_what_memory_lacks(MEMORY_HINT):
            exported = run_export(plan, say)
    except CheckFailed as error:
        print(f"{command}: check failed: {error}", file=sys.stderr)
        return 1
    with leaving(f"{plan.out} was written"):
        # A path that begins with a dash would be taken for an option.
        out = f"./{plan.out}" if str(plan.out).startswith("-") else str(plan.out)
        next_step = plan.target.next_step.format(out=shlex.quote(out))
        say(next_step)
        if is_json:
            print_json(_plain(exported, plan.out) | {"seconds": time.monotonic() - start, "next_step": next_step})
    return 0


def _plain(exported: Exported, out: Path) -> dict[str, Any]:
    """What --json prints of an export; docs/export-check.md has the fields."""
    manifest, sizes = exported.manifest, [path.stat().st_size for path in out.iterdir()]
    names = ("model", "family", "target", "dtype", "activation_dtype", "cache_dtype")
    return {
        "bundle": out,
        **{name: getattr(manifest, name) for name in names},
        "experts": manifest.experts.weight_format,
        "linears": {part: getattr(manifest.linears, part).weight_format for part in ("dense", "head", "vision")},
        "methods": manifest.policy.methods,
        "default_method": manifest.policy.default_method,
        "retention": manifest.policy.retention,
        "files": len(sizes),
        "bytes": sum(sizes),
        "differences": [asdict(one) for one in exported.differences],
    }


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected layer numbers such as 2,5,8") from error


def _dtype_help() -> str:
    by_dtype: dict[str, list[str]] = {}
    for target in TARGETS.values():
        by_dtype.setdefault(target.dtypes[0], []).append(target.name)
    *few, most = sorted(by_dtype, key=lambda dtype: len(by_dtype[dtype]))
    defaults = ", ".join(f"{dtype} for {', '.join(by_dtype[dtype])}" for dtype in few)
    return f"default {defaults}, {most} for the others; on cpu a 16-bit type stores expert weights only"


def _atol_help() -> str:
    over_bf16 = "over bf16 caches on cpu by what such caches change in torch itself"
    return f"greatest difference from torch, in float32, that the check allows (default {ATOL:g}; {over_bf16})"


if __name__ == "__main__":
    sys.exit(main())
