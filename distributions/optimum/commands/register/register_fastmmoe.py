# SPDX-License-Identifier: Apache-2.0
"""optimum-cli reads every file in this folder of every distribution: here it finds `optimum-cli export fastmmoe`."""

from optimum.commands.export.base import ExportCommand

from fastmmoe.exporter.optimum_command import ExportFastmmoe

REGISTER_COMMANDS = [(ExportFastmmoe, ExportCommand)]
