# SPDX-License-Identifier: Apache-2.0
"""fastmmoe run: answer about pictures, or run ready-made tensors."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmoe.runtime.cli.command import add_no_verify, add_provider, check_text, saying_what_memory_lacks
from fastmmoe.runtime.cli.output import add_json, print_json
from fastmmoe.runtime.cli.values import IMAGE_HELP, read_pictures, share
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import check_new, replacing
from fastmmoe.runtime.machines.threads import check_threads
from fastmmoe.runtime.method.policy import METHODS
from fastmmoe.runtime.request.options import RequestOptions, default_of

if TYPE_CHECKING:
    from fastmmoe.runtime.answer import Answer
    from fastmmoe.runtime.generation import RequestStats
    from fastmmoe.runtime.vlm import VLM

DESCRIPTION = """Answer about pictures with a bundle that fastmmoe-export made. --retention 1.0 without
--visual-top-k is the unmodified model; retention left out means the bundle's default. Tokens are the most probable
ones unless --temperature is above 0."""
MEMORY_HINT = "lower --max-tiles, give fewer or smaller pictures, or end other programs"

OF_TENSORS = (
    *("method", "retention", "pruning_rate", "visual_top_k", "alpha", "seed"),
    *("max_new_tokens", "temperature", "top_p", "top_k"),
)
OF_ANSWERS = ("max_tiles", "stop", "logprobs", "choices", "deadline_ms")
"""Options of a request by name; the second have no effect on ready-made tensors."""


def add_run(commands: Any) -> None:
    """Add the subcommand."""
    run = commands.add_parser("run", help="answer about pictures", description=DESCRIPTION)
    run.add_argument("bundle", type=Path, metavar="OUT", help="the bundle's directory")
    run.add_argument("--image", action="append", default=[], metavar="FILE", help=IMAGE_HELP)
    run.add_argument("--prompt", metavar="TEXT", help="the question, about the pictures in front of it")
    run.add_argument("--system", metavar="TEXT", help="system prompt (default: the model's own)")
    run.add_argument(
        "--inputs", type=Path, metavar="IN.npz", help="ready-made tensors instead of pictures and a prompt"
    )
    run.add_argument("--dump", type=Path, metavar="OUT.npz", help="where --inputs writes logits and decode_tokens")
    _add_method(run)
    _add_generation(run)
    add_provider(run)
    run.add_argument("--portable", action="store_true", help="without the native library (slow)")
    add_no_verify(run)
    add_json(run)
    run.set_defaults(function=_run)


def _add_method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", choices=METHODS, help="of those in the bundle (default: the bundle's)")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--retention", type=share, metavar="R", help="share of visual tokens to keep, (0, 1]")
    rate.add_argument("--pruning-rate", type=share, metavar="Q", help="share to remove, [0, 1): 1 - retention")
    parser.add_argument("--visual-top-k", type=int, metavar="N", help="experts per visual token")
    parser.add_argument(
        "--alpha", type=share, metavar="A", help="redundancy against importance, 0 to 1 (default: the bundle's)"
    )
    parser.add_argument(
        "--max-tiles",
        type=int,
        metavar="N",
        help="the most local tiles of a picture: the strongest lever on the latency of large ones",
    )


def _add_generation(parser: argparse.ArgumentParser) -> None:
    numbers: dict[str, tuple[Callable[[str], float], str, str]] = {
        "--max-new-tokens": (int, "N", "the most tokens of the answer"),
        "--temperature": (float, "T", "above 0 tokens are drawn, 0 takes the most probable one"),
        "--top-p": (share, "P", "draw from the most probable tokens of this share, (0, 1]"),
        "--top-k": (int, "K", "draw from so many of the most probable tokens; 0 = all"),
        "--seed": (int, "N", "of what is drawn, and of method random"),
    }
    for option, (kind, metavar, text) in numbers.items():
        default = default_of(option.removeprefix("--").replace("-", "_"))
        text = f"{text} (default %(default)s)"
        parser.add_argument(option, type=kind, default=default, metavar=metavar, help=text)
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="the answer ends in front of it; may be given again"
    )
    parser.add_argument(
        "--logprobs", type=int, metavar="N", help="log-probabilities of each token and of the N most probable ones"
    )
    parser.add_argument(
        "--choices", nargs="+", metavar="TEXT", help="texts of which the most likely is the answer, by one prefill"
    )
    parser.add_argument("--deadline-ms", type=float, metavar="MS", help="end by then, with what there is")
    parser.add_argument(
        "--warm-up", action="store_true", help="ask once before, so that the times are not those of a first request"
    )


def _run(arguments: argparse.Namespace) -> int:
    _check_combination(arguments)
    arguments.image = read_pictures(arguments.image)
    with saying_what_memory_lacks(MEMORY_HINT):
        return _load_and_run(arguments)


def _load_and_run(arguments: argparse.Namespace) -> int:
    from fastmmoe.runtime.vlm import VLM

    vlm = VLM(
        arguments.bundle,
        provider=arguments.provider,
        portable=arguments.portable,
        threads=arguments.threads,
        spinning=arguments.spinning,
        verify=not arguments.no_verify,
    )
    if arguments.inputs is not None:
        return _run_tensors(vlm, arguments, {name: getattr(arguments, name) for name in OF_TENSORS})
    return _answer(vlm, arguments, {name: getattr(arguments, name) for name in (*OF_TENSORS, *OF_ANSWERS)})


def _check_combination(a: argparse.Namespace) -> None:
    if (a.inputs is None) != (a.dump is None):
        raise InvalidRequest("--inputs and --dump go together")
    others = {"prompt": a.prompt, "system": a.system} | {name: getattr(a, name) for name in OF_ANSWERS}
    given = [f"--{name.replace('_', '-')}" for name, value in others.items() if value is not None]
    given += ["--image"] * bool(a.image) + ["--warm-up"] * a.warm_up
    if a.inputs is not None and given:
        raise InvalidRequest(f"--inputs takes the place of messages and has no text: leave out {', '.join(given)}")
    if a.inputs is None and a.prompt is None:
        raise InvalidRequest("give --prompt (and --image), or --inputs and --dump")
    if a.inputs is None and not a.image and not a.prompt.strip():
        raise InvalidRequest("--prompt is empty and there is no --image: nothing is asked")
    check_text("--prompt", a.prompt)
    check_text("--system", a.system)
    for option, texts in (("--stop", a.stop), ("--choices", a.choices)):
        for text in texts or ():
            check_text(option, text)
    RequestOptions.of({name: getattr(a, name) for name in (*OF_TENSORS, *OF_ANSWERS)})
    check_threads("--threads", a.threads)
    if a.dump is not None:
        check_new(a.bundle, a.dump)


def _run_tensors(vlm: VLM, arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    import numpy as np

    from fastmmoe.runtime.request.tensor_files import read_tensors

    outputs = vlm.run_tensors(read_tensors(arguments.inputs), **options)
    with replacing(arguments.dump, sum(value.nbytes for value in outputs.values())) as file:
        np.savez(file, **outputs)  # type: ignore[arg-type]
    shapes = {name: list(value.shape) for name, value in outputs.items()}
    if arguments.json:
        print_json(shapes)
    else:
        print(f"wrote {arguments.dump}: {', '.join(outputs)}")
    return 0


def _messages(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "image", "image": path} for path in arguments.image]
    content.append({"type": "text", "text": arguments.prompt})
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    return [*system, {"role": "user", "content": content}]


def _answer(vlm: VLM, arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    from fastmmoe.runtime.answer import Answer

    messages, is_warm = _messages(arguments), arguments.warm_up
    if is_warm:
        vlm.warm_up(messages, **options)
    if arguments.json:
        print_json(answer_dict(vlm.generate(messages, **options)) | {"warm": is_warm})
        return 0
    pieces = []
    for piece in vlm.generate_stream(messages, **options):
        print(piece.text, end="", flush=True)
        pieces.append(piece)
    print()
    answer = Answer.of(pieces)
    for line in (*_details(answer), describe(answer.stats, is_warm=is_warm)):
        print(line, file=sys.stderr)
    return 0


def answer_dict(answer: Answer) -> dict[str, Any]:
    """What --json prints of an answer; docs/generation.md has the fields."""
    values = {
        "text": answer.text,
        "channels": dict(answer.channels),
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "logprobs": [asdict(one) for one in answer.logprobs],
        "choices": [asdict(one) for one in answer.choices],
    }
    return values | answer.stats.plain()


def _details(answer: Answer) -> list[str]:
    """What an answer has beside its text, line by line."""
    lines = [
        f"{choice.probability:6.1%} {choice.text} (log-likelihood {choice.log_likelihood:.4f})"
        for choice in sorted(answer.choices, key=lambda one: -one.log_likelihood)
    ]
    for one in answer.logprobs:
        top = ", ".join(f"{other.token!r} {other.logprob:.4f}" for other in one.top_logprobs)
        lines.append(f"{one.token!r} {one.logprob:.4f} ({math.exp(one.logprob):.1%}){f': {top}' if top else ''}")
    if answer.finish_reason not in ("stop", "length"):
        lines.append(f"ended early: {answer.finish_reason}")
    return lines


def describe(stats: RequestStats, *, is_warm: bool) -> str:
    """One request in two lines: token counts, then FLOPs and times."""
    decode = f"{sum(stats.decode_ms) / len(stats.decode_ms):.1f} ms/token" if stats.decode_ms else "none"
    if stats.ttft_ms is None:
        first = f"ended without a token after {stats.preprocess_ms + stats.vision_ms:.0f} ms"
    else:
        first = f"first token after {stats.ttft_ms:.0f} ms"
    return (
        f"{_counts(stats)}\n"
        f"prefill {stats.prefill_flops / 1e9:.3f} GFLOPs ({stats.flops_reduction:.1%} less), "
        f"{first} (vision {stats.vision_ms:.0f}, prefill {stats.prefill_ms:.0f}), "
        f"decode {decode}, provider {stats.provider}, "
        f"{'warm' if is_warm else 'first request: slower than those after it (--warm-up)'}"
    )


def _counts(stats: RequestStats) -> str:
    if not stats.visual_tokens:
        return f"no picture, so nothing to prune: text tokens {stats.text_tokens:,}"
    stages = " -> ".join(f"{count:,}" for count in (stats.visual_tokens, *stats.kept_visual_tokens))
    return (
        f"{stats.method}: visual tokens {stages}, text tokens {stats.text_tokens:,}, "
        f"retention {stats.retention:g}, pruning rate {stats.pruning_rate:g}"
    )
