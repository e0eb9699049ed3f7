# SPDX-License-Identifier: Apache-2.0
"""fastmmoe flops, fastmmoe plan-retention: what a request would cost, from the manifest and the processor alone."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmoe.runtime.cli.command import check_text
from fastmmoe.runtime.cli.output import add_json, print_json
from fastmmoe.runtime.cli.table import align, number
from fastmmoe.runtime.cli.values import IMAGE_HELP, read_pictures, share, shares
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import ALL, UNMODIFIED

if TYPE_CHECKING:
    from fastmmoe.runtime.bundle.manifest import Manifest
    from fastmmoe.runtime.cost.flops import RequestFlops

FLOPS_DESCRIPTION = """Count the FLOPs of the language model's prefill, one line for each method and retention. The
prompt is given as pictures and a question, or as token counts. Nothing is run."""
PLAN_DESCRIPTION = """Find the greatest retention, in steps of 0.0001, whose counted prefill meets a target. The prompt
is given as pictures and a question, or as token counts. Nothing is run."""
DEFAULT_RETENTIONS = (1.0, 0.75, 0.5, 0.25)
PARTS = {
    "attention": ("projections", "attention"),
    "router": ("router",),
    "routed": ("routed_experts",),
    "shared": ("shared_experts",),
    "dense": ("dense",),
    "head": ("head",),
}
"""Columns of the table -> parts of the total."""
OTHER = "other"
STAGES, VISION, PRUNING = "visual tokens", "+vision", "pruning"
NOT_NEEDED = (PRUNING, VISION, STAGES)
"""Columns in the order in which narrow terminals lack them."""
WIDTH = 120
"""Of a table that no terminal shows."""
TABLE_NOTE = """GFLOPs of the prefill; pruning is not in the total
+vision: saved where the vision tower counts, too"""


@dataclass(frozen=True)
class PromptSize:
    """Counts that a prompt's FLOPs depend on; rater_rows: text rows after the last picture, None = all text rows."""

    visual_tokens: int
    text_tokens: int
    tiles: int
    rater_rows: int | None = None

    @property
    def counts(self) -> dict[str, Any]:
        """Arguments of `compare_prefill`."""
        tokens = self.visual_tokens + self.text_tokens
        return {"tokens": tokens, "visual_tokens": self.visual_tokens, "rater_rows": self.rater_rows}


def add_counting(commands: Any) -> None:
    """Add the two commands to a parser's subcommands."""
    flops = commands.add_parser("flops", help="count the FLOPs of a request", description=FLOPS_DESCRIPTION)
    _add_prompt(flops)
    flops.add_argument(
        "-r",
        "--retention",
        type=shares,
        default=DEFAULT_RETENTIONS,
        metavar="R,R,...",
        help=f"shares of visual tokens to keep (default {','.join(map(str, DEFAULT_RETENTIONS))})",
    )
    flops.add_argument("--method", default=ALL, metavar="M,M,...", help="of those in the bundle (default %(default)s)")
    flops.set_defaults(function=_flops)
    plan = commands.add_parser("plan-retention", help="find the retention for a budget", description=PLAN_DESCRIPTION)
    _add_prompt(plan)
    target = plan.add_mutually_exclusive_group(required=True)
    target.add_argument("--flops-reduction", type=share, metavar="S", help="share of the prefill to save, [0, 1)")
    target.add_argument("--max-gflops", type=float, metavar="X", help="of the prefill")
    target.add_argument("--max-tokens-kept", type=int, metavar="N", help="visual tokens after the last stage")
    plan.add_argument("--method", metavar="M", help="of those in the bundle (default: the bundle's)")
    plan.set_defaults(function=_plan)


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="OUT", help="the bundle's directory")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help=IMAGE_HELP)
    parser.add_argument("--prompt", metavar="TEXT", help="the question (default: none, only the chat template)")
    parser.add_argument("--max-tiles", type=int, metavar="N", help="the most local tiles of a picture")
    parser.add_argument("--visual-tokens", type=int, metavar="V", help="instead of pictures")
    parser.add_argument("--text-tokens", type=int, metavar="N", help="instead of a question")
    parser.add_argument("--tiles", type=int, metavar="N", help="with --visual-tokens: counts the vision tower, too")
    parser.add_argument("--visual-top-k", type=int, metavar="N", help="experts per visual token")
    add_json(parser)


def _flops(arguments: argparse.Namespace) -> int:
    from fastmmoe.runtime.bundle.manifest import read_manifest
    from fastmmoe.runtime.cost.flops import count_request

    manifest = read_manifest(arguments.bundle)
    size = _prompt_size(arguments, manifest)
    requests = [
        count_request(manifest, tiles=size.tiles, **size.counts, **options)
        for options in _requests(arguments, manifest)
    ]
    if arguments.json:
        print_json(_size_dict(requests[0], size) | {"requests": [_request_dict(r) for r in requests]})
    else:
        print("\n".join([_heading(manifest, requests[0], size), TABLE_NOTE, "", *_flops_table(requests)]))
    return 0


def _requests(arguments: argparse.Namespace, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Arguments of `count_request`, line by line; method none has one line only."""
    given = arguments.method.split(",")
    methods = [m for name in given for m in (manifest.policy.methods if name == ALL else (name.strip(),))]
    for method in dict.fromkeys(methods):
        if method == UNMODIFIED:
            yield {"method": method}
            continue
        for retention in dict.fromkeys(arguments.retention):
            yield {"method": method, "retention": retention, "visual_top_k": arguments.visual_top_k}


def _plan(arguments: argparse.Namespace) -> int:
    from fastmmoe.runtime.bundle.manifest import read_manifest
    from fastmmoe.runtime.cost.budget import Target, plan_retention
    from fastmmoe.runtime.cost.flops import vision_flops

    manifest = read_manifest(arguments.bundle)
    size = _prompt_size(arguments, manifest)
    target = Target(
        flops_reduction=arguments.flops_reduction,
        max_gflops=arguments.max_gflops,
        max_tokens_kept=arguments.max_tokens_kept,
    )
    request = plan_retention(
        manifest.language_model,
        manifest.policy,
        target,
        method=arguments.method,
        visual_top_k=arguments.visual_top_k,
        vision=vision_flops(manifest.vision, manifest.language_model.hidden_size, size.tiles),
        **size.counts,
    )
    if arguments.json:
        print_json(_size_dict(request, size) | _request_dict(request))
    else:
        print(_heading(manifest, request, size), _describe(request), sep="\n")
    return 0


def _prompt_size(a: argparse.Namespace, manifest: Manifest) -> PromptSize:
    from fastmmoe.runtime.bundle.manifest import TOKENIZER
    from fastmmoe.runtime.request.processor import Processor

    if a.visual_tokens is not None or a.text_tokens is not None:
        if a.image or a.prompt is not None or a.max_tiles is not None:
            raise InvalidRequest("--visual-tokens and --text-tokens take the place of --image, --prompt, --max-tiles")
        if a.visual_tokens is None or a.text_tokens is None:
            raise InvalidRequest("--visual-tokens and --text-tokens go together")
        counts = {"--visual-tokens": a.visual_tokens, "--text-tokens": a.text_tokens, "--tiles": a.tiles or 0}
        for option, count in counts.items():
            if count < 0:
                raise InvalidRequest(f"{option} {count}: expected 0 or more")
        return PromptSize(a.visual_tokens, a.text_tokens, a.tiles or 0)
    if a.tiles is not None:
        raise InvalidRequest("--tiles goes with --visual-tokens; of pictures the tiles are counted")
    if not a.image and a.prompt is None:
        raise InvalidRequest("give --image and --prompt, or --visual-tokens and --text-tokens")
    check_text("--prompt", a.prompt)
    tokenizer = a.bundle / TOKENIZER if TOKENIZER in manifest.files else None
    content: list[dict[str, Any]] = [{"type": "image", "image": path} for path in read_pictures(a.image)]
    content += [] if a.prompt is None else [{"type": "text", "text": a.prompt}]
    processor = Processor(manifest.processor, tokenizer)
    inputs = processor([{"role": "user", "content": content}], max_tiles=a.max_tiles)
    tokens, visual = len(inputs.input_ids), len(inputs.visual_index)
    raters = tokens - 1 - int(inputs.visual_index[-1]) if visual else None
    return PromptSize(visual, tokens - visual, sum(inputs.tile_counts), raters)


def _request_dict(request: RequestFlops) -> dict[str, Any]:
    """What --json prints of a request: plain numbers, FLOPs as integers."""
    schedule = request.schedule
    return {
        "method": schedule.method,
        "retention": schedule.retention,
        "pruning_rate": 1 - schedule.retention,
        "kept_visual_tokens": schedule.kept_visual_tokens,
        "merged_vectors": schedule.merged_vectors,
        "visual_top_k": schedule.visual_top_k,
        "flops": asdict(request.prefill),
        "total": request.prefill.total,
        "reduction": request.reduction,
        "reduction_with_vision": request.reduction_with_vision if request.vision else None,
    }


def _size_dict(request: RequestFlops, size: PromptSize) -> dict[str, Any]:
    return {
        "visual_tokens": size.visual_tokens,
        "text_tokens": size.text_tokens,
        "tiles": size.tiles,
        "vision_flops": request.vision,
        "unmodified_flops": asdict(request.unmodified),
        "unmodified_total": request.unmodified.total,
    }


def _heading(manifest: Manifest, request: RequestFlops, size: PromptSize) -> str:
    tiles = f", {size.tiles} tiles" if size.tiles else ""
    vision = f", vision tower {_gflops(request.vision)} GFLOPs" if request.vision else ""
    return (
        f"{manifest.model}: {size.visual_tokens:,} visual and {size.text_tokens:,} text tokens{tiles}\n"
        f"unmodified model: prefill {_gflops(request.unmodified.total)} GFLOPs{vision}"
    )


def _flops_table(requests: Sequence[RequestFlops]) -> list[str]:
    """Aligned lines: GFLOPs by part and in total, what is saved, and pruning, which the total leaves out.

    Where they would be wider than the terminal, the smallest parts share a column, or all are left out, and then
    `NOT_NEEDED`.
    """
    sums = {title: [_sum_parts(request, names) for request in requests] for title, names in PARTS.items()}
    parts = {title: counts for title, counts in sums.items() if any(counts)}
    smallest = sorted(parts, key=lambda title: max(parts[title]))
    width = shutil.get_terminal_size((WIDTH, 0)).columns
    for few in (0, *range(2, len(parts))):
        shown = {title: counts for title, counts in parts.items() if title not in smallest[:few]}
        if few:
            shown[OTHER] = [sum(counts) for counts in zip(*(parts[title] for title in smallest[:few]), strict=True)]
        lines = _lines(_columns(requests, shown))
        if max(map(len, lines)) <= width:
            return lines
    columns = _columns(requests, {})
    for title in ("", *NOT_NEEDED):
        columns.pop(title, None)
        lines = _lines(columns)
        if max(map(len, lines)) <= width:
            break
    return lines


def _columns(requests: Sequence[RequestFlops], parts: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """Cells of each column by its title."""
    columns: dict[str, list[str]] = {
        "method": [request.schedule.method for request in requests],
        "R": [f"{request.schedule.retention:g}" for request in requests],
        STAGES: [stages(request) for request in requests],
        **{title: [_gflops(count) for count in counts] for title, counts in parts.items()},
        "total": [_gflops(request.prefill.total) for request in requests],
        "saved": [f"{request.reduction:.1%}" for request in requests],
    }
    if any(request.vision for request in requests):
        columns[VISION] = [f"{request.reduction_with_vision:.1%}" for request in requests]
    return columns | {PRUNING: [_gflops(request.prefill.pruning) for request in requests]}


def _lines(columns: Mapping[str, Sequence[str]]) -> list[str]:
    left = 3 if STAGES in columns else 2
    return align([list(columns), *map(list, zip(*columns.values(), strict=True))], left=left)


def _sum_parts(request: RequestFlops, names: Sequence[str]) -> int:
    return sum(getattr(request.prefill, name) for name in names)


def _describe(request: RequestFlops) -> str:
    schedule = request.schedule
    with_vision = f", {request.reduction_with_vision:.2%} with the vision tower" if request.vision else ""
    return (
        f"{schedule.method}: retention {schedule.retention:g}, pruning rate {round(1 - schedule.retention, 4):g}, "
        f"visual tokens {stages(request)}\n"
        f"prefill {_gflops(request.prefill.total)} GFLOPs, {request.reduction:.2%} less{with_vision}"
    )


def stages(request: RequestFlops) -> str:
    """Visual tokens of the prompt and after each stage."""
    return ">".join(map(str, (request.schedule.visual_tokens, *request.schedule.kept_visual_tokens)))


def _gflops(flops: int) -> str:
    """In units of 1e9."""
    return number(flops / 1e9)
