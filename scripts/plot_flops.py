# SPDX-License-Identifier: Apache-2.0
"""Write docs/flops-reduction.svg and the generated parts of docs/flops.md.

    python scripts/plot_flops.py [--check] [--bundle BUNDLE]

The figure and the tables are counts for the published models (scripts/published_models.py). With --bundle the part that
shows what the commands print is written, too, by running them on a comparison bundle of the demo checkpoint. With
--check nothing is written, and the exit code is 1 where the tables are out of date.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import sys
from pathlib import Path
from typing import Any

from demo import SCENE, write_scene
from markers import replace_part, table, write_or_check, write_part
from published_models import PUBLISHED, TEXT_TOKENS, PublishedModel

from fastmmoe.runtime.cli.main import main as fastmmoe
from fastmmoe.runtime.cost.budget import Target, plan_retention
from fastmmoe.runtime.cost.flops import RequestFlops, compare_prefill

REPOSITORY = Path(__file__).resolve().parents[1]
FIGURE = REPOSITORY / "docs" / "flops-reduction.svg"
DOCUMENT = REPOSITORY / "docs" / "flops.md"
HEADLINE = 0.55
"""The reduction that FastMMoE's authors name."""
RETENTIONS = (0.75, 0.5, 0.25)
TEXTS, VISUALS = (64, 256), (421, 1023, 1792, 3328)
"""Tokens of prompts: a short and a long text; pictures of one tile, of 2 x 2 (DeepSeek-VL2), of 6 and 12 (InternVL)."""
PRUNING_ONLY, EXPERTS_ONLY = "fastmmoe, pruning only", "fastmmoe, experts only"
VARIANTS = ("fastmmoe", PRUNING_ONLY, EXPERTS_ONLY, "random", "fastv", "sparsevlm")
STYLES: dict[str, dict[str, Any]] = {
    "fastmmoe": {"color": "#0072b2", "linewidth": 2.4, "label": "FastMMoE"},
    PRUNING_ONLY: {"color": "#e69f00", "linewidth": 1.6, "label": "FastMMoE, pruning only (= random)"},
    EXPERTS_ONLY: {"color": "#0072b2", "linewidth": 1.4, "linestyle": (0, (5, 2)), "label": "FastMMoE, experts only"},
    "fastv": {"color": "#009e73", "linewidth": 1.6, "label": "FastV"},
    "sparsevlm": {"color": "#cc79a7", "linewidth": 1.6, "label": "SparseVLM"},
}
"""Of the figure's lines. random prunes as many tokens at the same layers as fastmmoe: one line stands for both."""


def options_of(variant: str, model: PublishedModel) -> dict[str, Any]:
    """Arguments of `compare_prefill` or `plan_retention` for a method or a half of fastmmoe."""
    counts = {"tokens": model.tokens, "visual_tokens": model.visual_tokens}
    if variant == PRUNING_ONLY:
        return counts | {"method": "fastmmoe", "visual_top_k": model.info.top_k}
    return counts | {"method": variant}


def count(variant: str, model: PublishedModel, retention: float) -> RequestFlops:
    """One prompt by a method or a half of fastmmoe; the experts alone do not depend on the retention."""
    options = options_of("fastmmoe" if variant == EXPERTS_ONLY else variant, model)
    if variant == EXPERTS_ONLY:
        options |= {"retention": 1.0, "visual_top_k": model.policy.visual_top_k}
    else:
        options["retention"] = retention
    return compare_prefill(model.info, model.policy, **options)


def plan(variant: str, model: PublishedModel) -> RequestFlops:
    """The mildest pruning that saves HEADLINE."""
    return plan_retention(model.info, model.policy, Target(flops_reduction=HEADLINE), **options_of(variant, model))


def headline_table() -> str:
    """By model and method: the greatest retention that saves HEADLINE, and the tokens it leaves."""
    rows = []
    for model in PUBLISHED:
        for variant in VARIANTS:
            if variant == EXPERTS_ONLY:
                rows.append(
                    (model.name, variant, "none", "", "", f"{count(variant, model, 1.0).reduction:.1%} at most")
                )
                continue
            request = plan(variant, model)
            stages = " > ".join(f"{n:,}" for n in (model.visual_tokens, *request.schedule.kept_visual_tokens))
            layers = ", ".join(map(str, model.policy.prune_layers[request.schedule.method]))
            R = f"{request.schedule.retention:g}"
            rows.append((model.name, variant, R, layers, stages, f"{request.reduction:.2%}"))
    return table(("model", "method", "R", "prune layers", "visual tokens", "saved"), rows)


def prompts_table() -> str:
    """By model and tokens of text: the retention that saves HEADLINE of prompts with few and many visual tokens."""
    rows = []
    for model in PUBLISHED:
        for text in TEXTS:
            counts = [{"tokens": text + visual, "visual_tokens": visual} for visual in VISUALS]
            plans = [
                plan_retention(model.info, model.policy, Target(flops_reduction=HEADLINE), method="fastmmoe", **one)
                for one in counts
            ]
            rows.append((model.name, str(text), *(f"{request.schedule.retention:.4f}" for request in plans)))
    return table(("model", "text tokens", *(f"R of {visual:,} visual tokens" for visual in VISUALS)), rows)


def reduction_table() -> str:
    """By model and method: what is saved at some retentions, beside the unmodified model's prefill."""
    rows = []
    for model in PUBLISHED:
        unmodified = count("fastmmoe", model, 1.0).unmodified.total
        for variant in VARIANTS:
            saved = [f"{count(variant, model, R).reduction:.1%}" for R in RETENTIONS]
            rows.append((model.name, f"{unmodified / 1e9:,.0f}", variant, *saved))
    columns = ("model", "GFLOPs unmodified", "method", *(f"saved at R = {R:g}" for R in RETENTIONS))
    return table(columns, rows)


def published_part() -> str:
    """The generated part about the published models."""
    prompts = [f"* {m.name}: {m.visual_tokens:,} visual tokens ({m.picture})" for m in PUBLISHED]
    return "\n\n".join(
        [
            f"Prompts, each with {TEXT_TOKENS} text tokens:",
            "\n".join(prompts),
            f"The greatest retention, in steps of 0.0001, that saves {HEADLINE:.1%}:",
            headline_table(),
            f"That retention depends on the prompt. Of fastmmoe, for {HEADLINE:.1%}:",
            prompts_table(),
            "What is saved at other retentions:",
            reduction_table(),
        ]
    )


def commands_part(bundle: str) -> str:
    """What the commands print for a comparison bundle of the demo checkpoint."""
    question = write_scene(SCENE)[0].question
    prompt = [bundle, "--image", str(SCENE), "--prompt", question]
    parts = []
    for command, *rest in (
        ("flops", "-r", "1.0,0.75,0.5,0.25", "--method", "all"),
        ("plan-retention", "--flops-reduction", "0.4"),
        ("plan-retention", "--max-tokens-kept", "60", "--method", "fastv"),
    ):
        arguments = [command, *prompt, *rest]
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            code = fastmmoe(arguments)
        if code:
            sys.exit(code)
        parts.append(f"```console\n$ fastmmoe {shlex.join(arguments)}\n{output.getvalue().rstrip()}\n```")
    return "\n\n".join(parts)


def draw(path: Path) -> None:
    """The figure: a panel for each model. The same bytes every time, with one version of matplotlib."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Letters are drawn from the font that comes with matplotlib, so that they look alike everywhere.
    settings: Any = {"svg.hashsalt": "fastmmoe", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 10}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        panels = figure.subplots(1, len(PUBLISHED), sharey=True, gridspec_kw={"wspace": 0.08})
        for axes, model in zip(panels, PUBLISHED, strict=True):
            draw_panel(axes, model)
        panels[0].set_ylabel("prefill FLOPs saved (%)")
        lines, labels = panels[0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def draw_panel(axes: Any, model: PublishedModel) -> None:
    """One model's reductions, and where FastMMoE reaches HEADLINE."""
    retentions = [step / 100 for step in range(10, 101)]
    for variant, style in STYLES.items():
        # At 1.0 itself FastMMoE is switched off; its line ends where it is still on.
        shown = [min(R, 0.9999) if variant == "fastmmoe" else R for R in retentions]
        axes.plot(retentions, [100 * count(variant, model, R).reduction for R in shown], **style)
    R = plan("fastmmoe", model).schedule.retention
    axes.axhline(100 * HEADLINE, color="#555555", linewidth=0.9, linestyle=":")
    axes.text(0.995, 100 * HEADLINE - 1, f"paper: {HEADLINE:.1%}", color="#333333", fontsize=9, ha="right", va="top")
    axes.plot([R], [100 * HEADLINE], "o", color=STYLES["fastmmoe"]["color"], markersize=7, zorder=5)
    axes.annotate(f"R = {R:.2f}", (R, 100 * HEADLINE), (5, 7), textcoords="offset points", fontsize=10, weight="bold")
    axes.set_title(f"{model.name}\n{model.visual_tokens:,} visual + {TEXT_TOKENS} text tokens", fontsize=10)
    axes.set_xlabel("retention R")
    axes.set_xlim(0.1, 1.0)
    axes.set_ylim(0, 90)
    axes.set_xticks([0.1, 0.25, 0.5, 0.75, 1.0], ["0.1", "0.25", "0.5", "0.75", "1"])
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--bundle", help="a bundle that fastmmoe-export demo BUNDLE --method all made")
    arguments = parser.parse_args()
    document = replace_part(DOCUMENT.read_text(encoding="utf-8"), "published models", published_part())
    write_or_check({DOCUMENT: document}, check=arguments.check)
    if arguments.check:
        return
    draw(FIGURE)
    if arguments.bundle is not None:
        write_part(DOCUMENT, "commands", commands_part(arguments.bundle))


if __name__ == "__main__":
    main()
