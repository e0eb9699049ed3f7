# SPDX-License-Identifier: Apache-2.0
"""fastmmoe: run a bundle, or build its engines. Heavy imports wait until the arguments are known to be good."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmoe import __version__
from fastmmoe.runtime.backends.settings import AUTO, PROVIDERS
from fastmmoe.runtime.cli.bundle import add_bundle_commands
from fastmmoe.runtime.cli.command import (
    ArgumentParser,
    add_no_verify,
    check_text,
    run_command,
    saying_what_memory_lacks,
)
from fastmmoe.runtime.cli.completion import add_completion
from fastmmoe.runtime.cli.flops import add_counting
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import check_replaceable, replacing
from fastmmoe.runtime.machines.threads import check_threads
from fastmmoe.runtime.method.policy import METHODS
from fastmmoe.runtime.request.options import default_of

if TYPE_CHECKING:
    from fastmmoe.runtime.generation import RequestStats
    from fastmmoe.runtime.vlm import VLM

RUN_DESCRIPTION = """Answer about pictures with a bundle that fastmmoe-export made. --retention 1.0 without
--visual-top-k is the unmodified model; retention left out means the bundle's default."""
BUILD_DESCRIPTION = """Build the TensorRT engines of a bundle, on the device they are for. Bundles of target rtx come
with engines; they may be built again, with other limits, on any x86-64 machine. The limits cost memory on the device.
Without options there is room for one picture of the most tiles, 512 tokens of text and an answer of 512 tokens."""
MEMORY_HINT = "lower --max-tiles, give fewer or smaller pictures, or end other programs"
COMMANDS = "fastmmoe.commands"
"""Entry points: functions that add a subcommand which needs more than the runtime does (pyproject.toml)."""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(prog="fastmmoe", description="Run mixture-of-experts VLMs with FastMMoE.")
    parser.add_argument("--version", action="version", version=f"fastmmoe {__version__}")
    add_completion(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_build(commands)
    add_counting(commands)
    add_bundle_commands(commands)
    for command in entry_points(group=COMMANDS):
        command.load()(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="answer about pictures", description=RUN_DESCRIPTION)
    run.add_argument("bundle", type=Path, metavar="OUT", help="the bundle's directory")
    run.add_argument("--image", action="append", default=[], metavar="FILE", help="a picture; may be given again")
    run.add_argument("--prompt", metavar="TEXT", help="the question, about the pictures in front of it")
    run.add_argument("--system", metavar="TEXT", help="system prompt (default: the model's own)")
    run.add_argument(
        "--inputs", type=Path, metavar="IN.npz", help="ready-made tensors instead of pictures and a prompt"
    )
    run.add_argument("--dump", type=Path, metavar="OUT.npz", help="where --inputs writes logits and decode_tokens")
    _add_request_arguments(run)
    run.add_argument(
        "--provider",
        choices=PROVIDERS,
        default=AUTO,
        help="what runs it (default: the best that bundle and machine have)",
    )
    run.add_argument("--portable", action="store_true", help="without the native library (slow)")
    run.add_argument("--threads", type=int, default=0, metavar="N", help="0 = one per core (default)")
    add_no_verify(run)
    run.add_argument("--json", action="store_true", help="one JSON object instead of text")
    run.set_defaults(function=_run)


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
    build.set_defaults(function=_build)


def _add_request_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", choices=METHODS, help="of those in the bundle (default: the bundle's)")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--retention", type=float, metavar="R", help="share of visual tokens to keep, (0, 1]")
    rate.add_argument("--pruning-rate", type=float, metavar="Q", help="share to remove, [0, 1): 1 - retention")
    parser.add_argument("--visual-top-k", type=int, metavar="N", help="experts per visual token")
    parser.add_argument(
        "--alpha", type=float, metavar="A", help="redundancy against importance, 0 to 1 (default: the bundle's)"
    )
    numbers = {"--seed": "of method random (default %(default)s)", "--max-new-tokens": "default %(default)s"}
    for option, text in numbers.items():
        default = default_of(option.removeprefix("--").replace("-", "_"))
        parser.add_argument(option, type=int, default=default, metavar="N", help=text)
    parser.add_argument(
        "--max-tiles",
        type=int,
        metavar="N",
        help="the most local tiles of a picture: the strongest lever on the latency of large ones",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 for what the user can mend; 130 when interrupted."""
    return run_command("fastmmoe", lambda: _call(build_parser().parse_args(argv)))


def _call(arguments: argparse.Namespace) -> int:
    code: int = arguments.function(arguments)
    return code


def _build(arguments: argparse.Namespace) -> int:
    from fastmmoe.runtime.backends.tensorrt.build import BuildOptions, build_engines, show_commands

    options = BuildOptions(
        max_tokens=arguments.max_tokens,
        max_visual=arguments.max_visual,
        max_cache=arguments.max_cache,
        max_tiles=arguments.max_tiles,
        max_batch=arguments.max_batch,
        workspace_mib=arguments.workspace,
    )

    def say(line: str) -> None:
        print(line, flush=True)

    verify = not arguments.no_verify
    if arguments.dry_run:
        show_commands(arguments.bundle, options, say=say, verify=verify)
        return 0
    engines = build_engines(arguments.bundle, options, say=say, verify=verify)
    print(f"wrote {', '.join(engines.files)} in {arguments.bundle}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    _check_combination(arguments)
    with saying_what_memory_lacks(MEMORY_HINT):
        return _load_and_run(arguments)


def _load_and_run(arguments: argparse.Namespace) -> int:
    from fastmmoe.runtime.vlm import VLM

    vlm = VLM(
        arguments.bundle,
        provider=arguments.provider,
        portable=arguments.portable,
        threads=arguments.threads,
        verify=not arguments.no_verify,
    )
    options = {
        "method": arguments.method,
        "seed": arguments.seed,
        "retention": arguments.retention,
        "pruning_rate": arguments.pruning_rate,
        "visual_top_k": arguments.visual_top_k,
        "alpha": arguments.alpha,
        "max_new_tokens": arguments.max_new_tokens,
    }
    if arguments.inputs is not None:
        return _run_tensors(vlm, arguments, options)
    return _answer(vlm, arguments, options | {"max_tiles": arguments.max_tiles})


def _check_combination(a: argparse.Namespace) -> None:
    if (a.inputs is None) != (a.dump is None):
        raise InvalidRequest("--inputs and --dump go together")
    if a.inputs is not None and (a.image or a.prompt is not None or a.system is not None or a.max_tiles is not None):
        raise InvalidRequest("--inputs takes the place of --image, --prompt, --system and --max-tiles")
    if a.inputs is None and a.prompt is None:
        raise InvalidRequest("give --prompt (and --image), or --inputs and --dump")
    check_text("--prompt", a.prompt)
    check_text("--system", a.system)
    check_threads("--threads", a.threads)
    if a.dump is not None:
        check_replaceable(a.dump)


def _run_tensors(vlm: VLM, arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    import numpy as np

    from fastmmoe.runtime.request.tensor_files import read_tensors

    outputs = vlm.run_tensors(read_tensors(arguments.inputs), **options)
    with replacing(arguments.dump, sum(value.nbytes for value in outputs.values())) as file:
        np.savez(file, **outputs)  # type: ignore[arg-type]
    shapes = {name: list(value.shape) for name, value in outputs.items()}
    print(json.dumps(shapes) if arguments.json else f"wrote {arguments.dump}: {', '.join(outputs)}")
    return 0


def _messages(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "image", "image": path} for path in arguments.image]
    content.append({"type": "text", "text": arguments.prompt})
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    return [*system, {"role": "user", "content": content}]


def _answer(vlm: VLM, arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    messages = _messages(arguments)
    if arguments.json:
        answer = vlm.generate(messages, **options)
        result: dict[str, Any] = {"text": answer.text, "channels": answer.channels, "token_ids": answer.token_ids}
        result["finish_reason"] = answer.finish_reason
        # Other encodings' escapes of what they lack are not JSON's.
        is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        print(json.dumps(result | stats_dict(answer.stats), ensure_ascii=not is_utf8))
        return 0
    piece = None
    for piece in vlm.generate_stream(messages, **options):
        print(piece.text, end="", flush=True)
    print()
    assert piece is not None
    print(describe(piece.stats), file=sys.stderr)
    return 0


def stats_dict(stats: RequestStats) -> dict[str, Any]:
    """What --json prints of a request: plain numbers, derived ones included, index arrays left out."""
    values = asdict(stats)
    del values["kept_index"]
    derived = {name: getattr(stats, name) for name in ("pruning_rate", "ttft_ms", "flops_reduction")}
    return values | derived


def describe(stats: RequestStats) -> str:
    """One request in two lines: token counts, then FLOPs and times."""
    stages = " -> ".join(f"{count:,}" for count in (stats.visual_tokens, *stats.kept_visual_tokens))
    decode = f"{sum(stats.decode_ms) / len(stats.decode_ms):.1f} ms/token" if stats.decode_ms else "none"
    return (
        f"{stats.method}: visual tokens {stages}, text tokens {stats.text_tokens:,}, "
        f"retention {stats.retention:g}, pruning rate {stats.pruning_rate:g}\n"
        f"prefill {stats.prefill_flops / 1e9:.3f} GFLOPs ({stats.flops_reduction:.1%} less), "
        f"first token after {stats.ttft_ms:.0f} ms (vision {stats.vision_ms:.0f}, prefill {stats.prefill_ms:.0f}), "
        f"decode {decode}, provider {stats.provider}"
    )


if __name__ == "__main__":
    sys.exit(main())
