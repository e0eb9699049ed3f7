# SPDX-License-Identifier: Apache-2.0
"""fastmmoe watch: a question about the newest frame of a camera, again and again, within a budget."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmmoe.runtime.cli.command import add_no_verify, add_provider, check_text
from fastmmoe.runtime.cli.output import add_json, print_json
from fastmmoe.runtime.cli.values import shares
from fastmmoe.runtime.machines.threads import check_threads
from fastmmoe.runtime.method.policy import METHODS

if TYPE_CHECKING:
    from fastmmoe.runtime.camera.loop import FrameStats, Seen

DESCRIPTION = """Ask about the newest frame of a camera, again and again, until it ends. With --budget-ms retention and
tiles of each frame are chosen so that nine of ten answers come in that time."""
MAX_NEW_TOKENS = 16
WIDTH = 80
_ORDERS = ("rgb", "bgr")
_CLEAR = "\r\x1b[K"


def add_watch(commands: Any) -> None:
    """Add the subcommand."""
    watch = commands.add_parser("watch", help="ask about the frames of a camera", description=DESCRIPTION)
    watch.add_argument("bundle", type=Path, metavar="OUT", help="the bundle's directory")
    watch.add_argument(
        "--source",
        required=True,
        metavar="SOURCE",
        help="a pattern of picture files; /dev/videoN, an address or a GStreamer pipeline, by OpenCV; or SYNTHETIC",
    )
    watch.add_argument("--prompt", required=True, metavar="TEXT", help="the question about every frame")
    watch.add_argument("--system", metavar="TEXT", help="system prompt (default: the model's own)")
    watch.add_argument("--budget-ms", type=float, metavar="MS", help="of a frame's answer (default: none)")
    watch.add_argument("--frames", type=int, metavar="N", help="answer so many, then end")
    watch.add_argument("--fps", type=float, metavar="F", help="of files and SYNTHETIC (default: 30)")
    watch.add_argument("--order", choices=_ORDERS, help="of a camera's colours (default: bgr, as OpenCV gives them)")
    watch.add_argument(
        "--retention",
        type=_range,
        metavar="R[,R]",
        help="share of visual tokens to keep: one, or the least and the greatest (default: 0.15,1)",
    )
    watch.add_argument("--max-tiles", type=int, metavar="N", help="the most local tiles of a frame")
    watch.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS, metavar="N", help="default %(default)s")
    watch.add_argument("--method", choices=METHODS, help="of those in the bundle (default: the bundle's)")
    add_provider(watch)
    add_no_verify(watch)
    add_json(watch, "one JSON object a frame instead of text")
    watch.set_defaults(function=_watch)


def _range(text: str) -> float | tuple[float, ...]:
    first, *rest = shares(text)
    return (first, *rest) if rest else first


def _watch(arguments: argparse.Namespace) -> int:
    check_text("--prompt", arguments.prompt)
    check_text("--system", arguments.system)
    check_threads("--threads", arguments.threads)
    # A terminal's line is written over by the next; everything else gets lines.
    shown = _Shown(is_live=sys.stdout.isatty(), is_json=arguments.json)
    try:
        for seen in _seen(arguments):
            shown.show(seen)
    except KeyboardInterrupt:
        shown.end()
        raise KeyboardInterrupt(f"{len(shown.stats)} frames were answered") from None
    shown.end()
    return 0


def _seen(arguments: argparse.Namespace) -> Iterator[Seen]:
    from fastmmoe.runtime.camera.loop import check_arguments, watch
    from fastmmoe.runtime.camera.settings import RETENTIONS
    from fastmmoe.runtime.camera.sources import open_source
    from fastmmoe.runtime.vlm import VLM

    names = ("budget_ms", "system", "frames", "method", "max_tiles", "max_new_tokens")
    asked = {name: getattr(arguments, name) for name in names}
    asked["retention"] = RETENTIONS if arguments.retention is None else arguments.retention
    # A large bundle takes long to load.
    check_arguments(arguments.prompt, **asked)
    source, order = open_source(arguments.source, arguments.fps)
    settings = {name: getattr(arguments, name) for name in ("provider", "threads", "spinning")}
    vlm = VLM(arguments.bundle, **settings, verify=not arguments.no_verify)
    with vlm:
        yield from watch(vlm, source, arguments.prompt, order=arguments.order or order, **asked)


@dataclass
class _Shown:
    """What stands on the terminal, and the stats of the frames so far."""

    is_live: bool
    is_json: bool
    stats: list[FrameStats] = field(default_factory=list)

    def show(self, seen: Seen) -> None:
        """Print a frame's answer."""
        self.stats.append(seen.stats)
        if self.is_json:
            print_json(frame_dict(seen))
            return
        columns = min(shutil.get_terminal_size().columns, WIDTH) if self.is_live else WIDTH
        text = line(seen)[: columns - 1]
        print(f"{_CLEAR}{text}" if self.is_live else text, end="" if self.is_live else "\n", flush=True)

    def end(self) -> None:
        """Print what there is to say of all frames, on stderr."""
        if self.is_live and not self.is_json and self.stats:
            print()
        for said in summary(self.stats):
            print(said, file=sys.stderr)


def frame_dict(seen: Seen) -> dict[str, Any]:
    """What --json prints of a frame (docs/camera.md)."""
    of_request = seen.answer.stats
    return {
        "text": seen.text,
        "finish_reason": seen.answer.finish_reason,
        **asdict(seen.stats),
        "visual_tokens": of_request.visual_tokens,
        "kept_visual_tokens": of_request.kept_visual_tokens,
        "preprocess_ms": of_request.preprocess_ms,
        "vision_ms": of_request.vision_ms,
        "prefill_ms": of_request.prefill_ms,
        "decode_ms": of_request.decode_ms,
        "provider": of_request.provider,
    }


def line(seen: Seen) -> str:
    """A frame on one line, the answer last, as it may be long."""
    stats = seen.stats
    budget = "" if stats.budget_ms is None else f"/{stats.budget_ms:.0f}"
    mark = "!" if stats.is_met is False else " "
    words = f" [{stats.limit}]" if stats.limit in ("learning", "floor", "vision") else ""
    return (
        f"{stats.number:5d} {stats.latency_ms:5.0f}{budget} ms{mark} R {stats.retention:.2f} tiles {stats.tiles:2d} "
        f"age {stats.age_ms:3.0f} ms dropped {stats.dropped:2d}{words} | {' '.join(seen.text.split())}"
    )


def summary(stats: list[FrameStats]) -> list[str]:
    """One or two lines about all frames."""
    if not stats:
        return ["no frames"]
    import numpy as np

    median, p90 = np.quantile([one.latency_ms for one in stats], [0.5, 0.9])
    dropped = sum(one.dropped for one in stats)
    start = f"{len(stats)} frames answered, {dropped} dropped; median {median:.0f} ms, p90 {p90:.0f} ms"
    last = stats[-1]
    if last.budget_ms is None:
        return [start]
    met = sum(bool(one.is_met) for one in stats) / len(stats)
    said = [f"{start}; {met:.0%} within {last.budget_ms:g} ms"]
    if last.floor_ms is not None and last.vision_floor_ms is not None and last.limit in ("floor", "vision"):
        said.append(
            f"the budget is below the floor: at the least retention and tiles nine of ten answers take up to "
            f"{last.floor_ms:.0f} ms, {last.vision_floor_ms:.0f} ms of them for vision"
        )
    return said
