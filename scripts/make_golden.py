# SPDX-License-Identifier: Apache-2.0
"""Write tests/golden, the trimmed copy of the golden data, from the full set.

    python scripts/make_golden.py FULL_SET [--output tests/golden]

The copy has the file and array names of the full set and fewer arrays; tests/golden/README.md says which and why.
The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import lzma
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np

from fastmmoe.runtime.types import Array

LIMIT_BYTES = 20_000_000

# Not in the copy: what tests/support/golden.py makes from the Hugging Face twin.
LEFT_OUT = re.compile(r"^(README\.md|internvl-.*-original/model\.safetensors)$")

# Per file, the arrays to keep; every other .npz is kept whole.
KEPT_ARRAYS = (
    (
        re.compile(r"/outputs_(single|batch2|multi3)\.npz$"),
        re.compile(
            r"^(logits|decode_tokens|decode_logits|position_ids|moe_layers|input_ids|attention_mask|pixel_values)$"
        ),
    ),
    (re.compile(r"^fastmmoe/fastmmoe_.*\.npz$"), re.compile(r"^(?!\d+_router_logits_last$)")),
    (re.compile(r"^internvl-gptoss/outputs_text\.npz$"), re.compile(r"")),
    (re.compile(r"^baselines/sparsevlm_functions\.npz$"), re.compile(r"^(?!attn$)")),
    (re.compile(r"^baselines/fastv_.*\.npz$"), re.compile(r"")),
)

# Literal coding by position modulo four: exponent bytes of float32 share their statistics.
FLOAT32_FILTERS: list[dict[str, int]] = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 2, "pb": 2}]


def trim(file: str, arrays: dict[str, Array]) -> dict[str, Array]:
    """The arrays of one .npz that the copy keeps; logits of long outputs are cut to the last row, [..., 1, V]."""
    for files, names in KEPT_ARRAYS:
        if not files.search(file):
            continue
        kept = {name: array for name, array in arrays.items() if names.search(name)}
        cut = [name for name in kept if re.search(r"(^|R[\d.]+_)logits$", name)]
        if cut:
            kept |= {name: kept[name][:, -1:] for name in cut}
            kept["last_row_only"] = np.array(cut)
        return kept
    return arrays


def write_npz(path: Path, arrays: dict[str, Array]) -> None:
    """Write an .npz that numpy.load reads: LZMA instead of deflate, and no time stamps."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_LZMA
            with archive.open(member, "w") as out:
                np.lib.format.write_array(out, array, allow_pickle=False)


def copy_file(source: Path, file: str, output: Path) -> str:
    """Write one file of the copy; return what was cut, or an empty text."""
    target = output / file
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.endswith(".safetensors"):
        packed = lzma.compress((source / file).read_bytes(), format=lzma.FORMAT_XZ, filters=FLOAT32_FILTERS)
        target.with_name(f"{target.name}.xz").write_bytes(packed)
        return ""
    if not file.endswith(".npz"):
        shutil.copyfile(source / file, target)
        return ""
    with np.load(source / file) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    kept = trim(file, arrays)
    write_npz(target, kept)
    dropped = [name for name in arrays if name not in kept]
    cut = ", ".join(map(str, kept.get("last_row_only", [])))
    parts = [f"without {' '.join(dropped)}"] * bool(dropped) + [f"last row only of {cut}"] * bool(cut)
    return f"{file}: {', '.join(parts)}" if parts else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the trimmed copy of the golden data.")
    parser.add_argument("full_set", type=Path, help="directory of the full set")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "tests" / "golden")
    arguments = parser.parse_args()
    source, output = arguments.full_set, arguments.output
    if not (source / "fastmmoe" / "prune_cases.npz").is_file():
        parser.error(f"{source} is not the full golden set: it has no fastmmoe/prune_cases.npz")
    files = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    for file in files:
        if not LEFT_OUT.match(file):
            cut = copy_file(source, file, output)
            if cut:
                print(cut)
    total = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {total / 1e6:.1f} MB, limit {LIMIT_BYTES / 1e6:.0f} MB")
    return 0 if total <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
