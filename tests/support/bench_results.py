# SPDX-License-Identifier: Apache-2.0
"""Made measurements of fastmmoe bench."""

from __future__ import annotations

from typing import Any

from fastmmoe.runtime.bench.result import SCHEMA, Result, Row
from fastmmoe.runtime.bench.statistics import deviation, mean, median, quantile

SAMPLES = (10.0, 10.1, 10.2, 10.3, 10.4)
MACHINE: dict[str, Any] = {
    "device": "A processor",
    "provider": "cpu",
    "power_mode": None,
    "clocks": "governor performance",
    "cores": 2,
    "threads": 2,
    "load": 0.1,
    "versions": {"fastmmoe": "0.1.0", "onnxruntime": "1.32.0"},
    "commit": "0123456789ab",
}
BUNDLE: dict[str, Any] = {
    "model": "demo",
    "target": "cpu",
    "dtype": "fp32",
    "experts": "float",
    "engines": None,
    "sha256": "ab" * 32,
}
SETTINGS: dict[str, Any] = {
    "repetitions": 5,
    "warmup": 1,
    "new_tokens": 32,
    "images": [],
    "prompt": "What is it?",
    "method": None,
    "max_tiles": None,
    "text_tokens": 10,
    "visual_tokens": 64,
    "tiles": 1,
}


def make_row(samples: tuple[float, ...] = SAMPLES, **changed: Any) -> Row:
    """A row of these samples, a prefill of 74 tokens."""
    values: dict[str, Any] = {
        "test": "prefill",
        "retention": 0.5,
        "depth": None,
        "batch": 1,
        "concurrency": 1,
        "tokens": 74,
        "visual_tokens": 64,
        "kept_visual_tokens": (40, 32),
        "samples_ms": samples,
        "mean_ms": mean(samples),
        "sd_ms": deviation(samples),
        "median_ms": median(samples),
        "p90_ms": quantile(samples, 0.9),
        "tokens_per_s": 74e3 / median(samples),
        "roofline_ms": 1.0,
        "roofline_share": 1.0 / median(samples),
    }
    return Row(**values | changed)


def make_result(*rows: Row, **changed: Any) -> Result:
    """A measurement with these rows."""
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": MACHINE,
        "bundle": BUNDLE,
        "settings": SETTINGS,
        "rates": {"flops": 1e11, "bytes": 2e10, "source": "test"},
        "rows": rows,
    }
    return Result(**values | changed)
