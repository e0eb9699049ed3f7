# SPDX-License-Identifier: Apache-2.0
"""The errors of the benchmark."""

from __future__ import annotations

from fastmmoe.runtime.errors import FastmmoeError


class BenchmarkError(FastmmoeError):
    """The benchmark cannot be run, or would say something wrong."""
