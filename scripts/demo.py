# SPDX-License-Identifier: Apache-2.0
"""`make demo`: export the built-in checkpoint, then answer about a picture at three retentions."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from fastmmoe import VLM
from fastmmoe.exporter.cli import main as export_main
from fastmmoe.runtime.vlm import Answer

BUNDLE = Path("demo-cpu")
SCENE = Path(".build/demo-scene.png")
QUESTION = "What stands on the table?"
RETENTIONS = (1.0, 0.5, 0.25)
RUNS = 3
MAX_TOKENS = 16
HEADER = (
    "retention",
    "pruning rate",
    "visual tokens by stage",
    "prefill GFLOPs",
    "saved",
    "vision ms",
    "prefill ms",
    "decode ms/token",
    "answer",
)


def draw_scene(path: Path) -> None:
    """A table with a few objects, as a robot's camera might see it."""
    image = Image.new("RGB", (700, 500), (176, 190, 204))
    draw = ImageDraw.Draw(image)
    draw.polygon([(60, 220), (640, 220), (700, 500), (0, 500)], fill=(150, 111, 72))
    draw.rectangle((120, 250, 220, 350), fill=(196, 40, 36))
    draw.ellipse((300, 280, 390, 370), fill=(38, 84, 190))
    draw.polygon([(470, 370), (530, 250), (590, 370)], fill=(236, 190, 40))
    draw.rectangle((400, 390, 450, 470), fill=(60, 150, 80))
    path.parent.mkdir(exist_ok=True)
    image.save(path)


def ask(vlm: VLM, retention: float) -> list[Answer]:
    """The same question several times; the first time warms up and does not count."""
    content = [{"type": "image", "image": SCENE}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    answers = [vlm.generate(messages, retention=retention, max_tokens=MAX_TOKENS) for _ in range(RUNS + 1)]
    return answers[1:]


def row(answers: list[Answer]) -> tuple[str, ...]:
    """One line of the table; times are medians."""
    stats = [answer.stats for answer in answers]
    first = stats[0]
    decode = statistics.median(ms for s in stats for ms in s.decode_ms)
    return (
        f"{first.retention:g}",
        f"{first.pruning_rate:g}",
        " > ".join(str(n) for n in (first.visual_tokens, *first.kept_visual_tokens)),
        f"{first.prefill_flops / 1e9:.2f}",
        f"{first.flops_reduction:.1%}",
        f"{statistics.median(s.vision_ms for s in stats):.0f}",
        f"{statistics.median(s.prefill_ms for s in stats):.0f}",
        f"{decode:.1f}",
        repr(answers[0].text),
    )


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Aligned columns, numbers to the right."""
    widths = [max(len(line[i]) for line in rows) for i in range(len(HEADER))]
    for line in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def main() -> int:
    """Exit code of the first step that fails, else 0."""
    code = export_main(["demo", str(BUNDLE), "--overwrite"])
    if code:
        return code
    draw_scene(SCENE)
    vlm = VLM(BUNDLE)
    print(f"\n{SCENE}: {QUESTION} (random weights: the answers mean nothing; medians of {RUNS} runs)")
    print_table([HEADER, *(row(ask(vlm, retention)) for retention in RETENTIONS)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
