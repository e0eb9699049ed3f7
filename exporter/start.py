# SPDX-License-Identifier: Apache-2.0
"""The command fastmmoe-export, from its first moment on."""

from __future__ import annotations

from fastmmoe.runtime.cli.start import end_at_interrupts, finished


def main() -> int:
    """Import the command and run it; see `fastmmoe.exporter.cli.main`."""
    end_at_interrupts("fastmmoe-export")
    from fastmmoe.exporter.cli import main as command

    return finished(command())
