# SPDX-License-Identifier: Apache-2.0
"""Write the tables that documents share with the code: inputs of graphs (bundle.md), settings (methods.md), targets.

    python scripts/make_tables.py [--check] [--docs FOLDER]

Only what stands between markers is written; the tables are runtime/bundle/graph_io.py, runtime/method/policy.py and
runtime/machines (tensorrt.md, and README.md beside the folder), and what fastmmoe plan says of every published model on
every machine (plan.md) and, in short, on Jetson (README.md).
With --check nothing is, and the exit code is 1 where a document is out of date.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from markers import replace_part, table, write_or_check

from fastmmoe.exporter.config import ExportConfig, Weights
from fastmmoe.exporter.fit.cli import make_report
from fastmmoe.exporter.fit.plan import WORDS, Fit, PlanOptions, cheaper, find_machine, fit
from fastmmoe.exporter.fit.sizes import published_configs, read_sizes
from fastmmoe.exporter.fit.text import Report, describe
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.graph_io import Entry
from fastmmoe.runtime.machines.devices import DEVICES, Device
from fastmmoe.runtime.machines.targets import TARGETS, KernelLimits, Target
from fastmmoe.runtime.method.policy import SETTINGS, Setting
from fastmmoe.runtime.ranges import limits

BOARDS = ("orin-nano-8gb", "orin-nx-16gb", "agx-orin-32gb", "agx-orin-64gb", "thor-t5000")
BOARD, FOUR_BIT_EXPERTS = "jetson-orin", ExportConfig(experts="int4", group_size=32, zero_points=True)
DOCUMENTS = Path(__file__).resolve().parents[1] / "docs"


def entry_row(entry: Entry) -> tuple[str, ...]:
    """Name, type with shape, and meaning of an input or output."""
    sizes = ", ".join("A + 1" if size == graph_io.OFFSETS else str(size) for size in entry.shape)
    condition = f" Only {entry.only_if.text}." if entry.only_if.text else ""
    return f"`{entry.name}`", f"{entry.dtype} [{sizes}]", f"{entry.doc}{condition}"


def graph_tables() -> str:
    """Those of the language model."""
    inputs = (*graph_io.OF_CALL, *graph_io.OF_SITE, *graph_io.OF_LAYER, *graph_io.OF_GROUP)
    kinds = {"input": inputs, "output": (*graph_io.OUTPUTS, *graph_io.SITE_OUTPUTS)}
    parts = (table((kind, "type, shape", "meaning"), map(entry_row, entries)) for kind, entries in kinds.items())
    return "\n\n".join(parts)


def settings_table() -> str:
    """The settings of a policy that a user gives by name."""
    return table(("setting", "what", "values", "default", "in policy.json"), map(setting_row, SETTINGS.values()))


def setting_row(setting: Setting) -> tuple[str, ...]:
    """Name, meaning, legal values and default of a setting."""
    values = ", ".join(f"`{choice}`" for choice in setting.choices)
    if not values:
        low, is_open, high = limits(setting.kind)
        values = f"above {low}, up to {high}" if is_open else f"{low} to {high}"
    default = "by [family](#default-settings)" if setting.default is None else f"`{setting.default}`"
    return f"`{setting.name}`", setting.what, values, default, "yes" if setting.in_file else "no"


def targets_table() -> str:
    """Every target, what is known of it, and the sizes that the kernels of engine targets take."""
    software = ("SM", "TensorRT, CUDA, Python", "plugin")
    head = ("target", "machines", *software, "dtypes", "experts", "dense", "engines are built")
    lines = dict.fromkeys(limits_line(target.kernels) for target in TARGETS.values() if target.kernels is not None)
    return "\n\n".join((table(head, map(target_row, TARGETS.values())), *lines))


def limits_line(limits: KernelLimits) -> str:
    """What kernels take, in words."""
    multiples = ", ".join(f"{multiple} ({weights})" for weights, multiple in limits.columns_multiple.items())
    latent, values = limits.most_latent
    return (
        f"Kernels of engine targets take at most {limits.most_experts} experts a layer, hidden sizes and columns of "
        f"packed linear layers that are multiples of {multiples}, outputs of these of multiples of "
        f"{limits.outputs_multiple}, heads of multiples of {limits.head_multiple} up to {limits.most_head_width}, and "
        f"latents up to {latent} with {values} values."
    )


def target_row(target: Target) -> tuple[str, ...]:
    """The cells of a target; its first dtype is the default."""
    machines = ", ".join(DEVICES[name].name for name in target.devices) or "any"
    start = f"`{target.name}`", machines
    formats = (", ".join(of) for of in (target.dtypes, target.expert_formats, target.dense_formats))
    if target.tensorrt is None:
        return *start, "-", "none: ONNX Runtime", "-", *formats, "-"
    sms = ", ".join(map(str, target.tensorrt.compute_capabilities))
    return *start, sms, versions(target), f"{target.tensorrt.plugin}", *formats, where_built(target)


def versions(target: Target) -> str:
    """TensorRT's releases, with the CUDA and the Python that they come with."""
    if target.tensorrt is None:
        return "none: ONNX Runtime"
    name = {"tensorrt_rtx": "RTX "}.get(target.tensorrt.module, "")
    shown = (
        f"{name}{r.version}, CUDA {r.cuda}" + (f", Python {r.python} ({r.source})" if r.python else "")
        for r in target.tensorrt.releases
    )
    return "; ".join(shown)


def where_built(target: Target) -> str:
    """Who builds engines, and where."""
    if target.tensorrt is None:
        return "-"
    return "by the exporter, without a GPU" if target.tensorrt.is_ahead_of_time else "on the device, `fastmmoe build`"


def status_table() -> str:
    """Targets that share versions and checks in one row."""
    groups: dict[tuple[str, str], list[Target]] = {}
    for target in TARGETS.values():
        groups.setdefault((versions(target), target.checked), []).append(target)
    rows = (
        (", ".join(f"`{t.name}`" for t in targets), shown, where_built(targets[0]), checked)
        for (shown, checked), targets in groups.items()
    )
    return table(("--target", "TensorRT, CUDA, Python", "engines are built", "what was tried"), rows)


def devices_table() -> str:
    """What data sheets say of the machines."""
    head = (
        "machine",
        "SM",
        "multiprocessors",
        "GB",
        "GB/s",
        "fp16, bf16 TFLOPS",
        "fp8 TFLOPS",
        "int8 TOPS",
        "power mode",
    )
    return table(head, map(device_row, DEVICES.values()))


def device_row(device: Device) -> tuple[str, ...]:
    """The cells of a machine."""
    rates = ("-" if rate is None else f"{rate:g}" for rate in (device.fp16_tflops, device.fp8_tflops, device.int8_tops))
    numbers = (device.sm, device.multiprocessors, device.memory_gb, device.gb_per_s)
    return device.name, *(f"{number:g}" for number in numbers), *rates, device.power_mode or "-"


def plans() -> dict[str, dict[str, Report | None]]:
    """Machine -> model -> the plan of the mildest way of storing it that fits; None = there is none."""
    return {machine: {model: best_plan(model, machine) for model in published_configs()} for machine in DEVICES}


def best_plan(model: str, name: str) -> Report | None:
    """That of `plans`."""
    options, sizes = PlanOptions(name), read_sizes(model)
    machine = find_machine(options)
    wanted = fit(sizes, machine, options)
    ways = (wanted, *(() if wanted.fits else cheaper(sizes, machine, options, wanted)))
    way = next((way for way in ways if way.fits), None)
    if way is None:
        return None
    return make_report(model, PlanOptions(name, export=ExportConfig(weights=way.weights)))


def example() -> str:
    """A model that fits in another form than the wanted one."""
    lines = describe(make_report("deepseek-vl2-small", PlanOptions("jetson-orin-nx")))
    return "\n".join(("```console", "$ fastmmoe plan deepseek-vl2-small --target jetson-orin-nx", *lines, "```"))


def plan_tables() -> str:
    """What fits where, and how fast it can be at most."""
    found, head = plans(), ("machine", *published_configs())
    parts = []
    for cell in (fit_cell, time_cell):
        rows = ((DEVICES[m].name, *("-" if r is None else cell(r) for r in of.values())) for m, of in found.items())
        parts.append(table(head, rows))
    titles = (
        "How weights are stored (fp16, or by `--weights`), and GB to spare:",
        "Least milliseconds to the first token at retention 1, 0.5 and 0.25; of every token after it:",
    )
    return "\n\n".join(text for pair in zip(titles, parts, strict=True) for text in pair)


def cpu_table() -> str:
    """GB of weights, and of all that runs, of each model on a CPU by the word for its formats."""
    words = get_args(Weights)
    return table(
        ("model", *words), ((model, *(cpu_cell(model, word) for word in words)) for model in published_configs())
    )


def cpu_cell(model: str, weights: Weights) -> str:
    """Of a machine that holds any."""
    options = PlanOptions("cpu", memory="4096GB", export=ExportConfig(weights=weights))
    needs = fit(read_sizes(model), find_machine(options), options).needs
    return f"{sum(needs.weights.values()) / 1e9:,.1f}, {needs.total / 1e9:,.1f}"


def decode_table() -> str:
    """What a decode step reads and takes at least on a board where experts have 4 bits, and where all weights have."""
    ways = {
        "--experts int4 --group-size 32 --zero-points": FOUR_BIT_EXPERTS,
        "--weights int4": ExportConfig(weights="int4"),
    }
    rows = []
    for model in published_configs():
        reports = [make_report(model, PlanOptions(BOARD, export=export)) for export in ways.values()]
        if all(report.fit.fits for report in reports):
            steps = [report.times.rows[0].decode for report in reports]
            cells = (f"{step.bytes / 1e9:.2f} GB, {step.ms:.1f} ms" for step in steps)
            rows.append((model, *cells, f"{1 - steps[1].ms / steps[0].ms:.0%}"))
    return table(("model", *(f"`{way}`" for way in ways), "less time"), rows)


def boards_table() -> str:
    """Models that some board has room for: GB in each format, and the formats that a board has room for."""
    rows = []
    for model in published_configs():
        fits = {board: [plan_of(model, board, word) for word in WORDS] for board in BOARDS}
        if any(found.fits for of_board in fits.values() for found in of_board):
            sizes = (f"{found.needs.total / 1e9:.1f}" for found in fits[BOARDS[-1]])
            rows.append((model, *sizes, *map(board_cell, fits.values())))
    return table(("model", *(f"{word}, GB" for word in WORDS), *(DEVICES[board].name for board in BOARDS)), rows)


def plan_of(model: str, board: str, word: Weights) -> Fit:
    """With all formats by the word, as far as the board's target has them."""
    options = PlanOptions(board, export=ExportConfig(weights=word))
    return fit(read_sizes(model), find_machine(options), options)


def board_cell(found: list[Fit]) -> str:
    """Words of the formats that fit."""
    return ", ".join(str(one.weights) for one in found if one.fits) or "-"


def fit_cell(report: Report) -> str:
    """How weights are stored, and what is left."""
    return f"{report.fit.weights or report.fit.dtype}, {report.fit.spare / 1e9:.1f}"


def time_cell(report: Report) -> str:
    """Milliseconds."""
    times = report.times
    first = (times.vision.ms + row.prefill.ms for row in times.rows)
    return f"{', '.join(f'{ms:,.0f}' for ms in first)}; {times.rows[0].decode.ms:.1f}"


PARTS = {
    "bundle.md": {"graph_io": graph_tables},
    "methods.md": {"settings": settings_table},
    "plan.md": {"example": example, "plans": plan_tables, "cpu": cpu_table, "decode": decode_table},
    "tensorrt.md": {"targets": targets_table, "devices": devices_table},
    "../README.md": {"boards": boards_table, "targets": status_table},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the documents are up to date")
    parser.add_argument("--docs", type=Path, default=DOCUMENTS, metavar="FOLDER")
    arguments = parser.parse_args()
    files = {}
    for name, parts in PARTS.items():
        path = arguments.docs / name
        text = path.read_text(encoding="utf-8")
        for marker, write in parts.items():
            text = replace_part(text, marker, write())
        files[path] = text
    write_or_check(files, check=arguments.check)


if __name__ == "__main__":
    main()
