# SPDX-License-Identifier: Apache-2.0
"""The registry of plugin libraries."""

from __future__ import annotations

import platform
import struct
from pathlib import Path

from device_double.device import current

_MACHINES = {"x86_64": 62, "aarch64": 183}


class IPluginRegistry:
    """Plugin libraries of the process. A library is not run; it must be a shared object for this machine."""

    def load_library(self, plugin_path: str) -> object | None:
        """A handle; None where the file is missing or for another machine."""
        path = Path(plugin_path)
        if not path.is_file():
            return None
        with path.open("rb") as file:
            head = file.read(20)
        if head[:4] != b"\x7fELF" or struct.unpack_from("<H", head, 18)[0] != _MACHINES[platform.machine()]:
            return None
        libraries = current().libraries
        libraries.append(str(path))
        return ("plugin library", str(path))


_REGISTRY = IPluginRegistry()


def get_plugin_registry() -> IPluginRegistry:
    """The one of the process."""
    return _REGISTRY
