# SPDX-License-Identifier: Apache-2.0
"""tensorrt_rtx over the simulated device."""

from typing import Any

from device_double import trt
from device_double.trt import *  # noqa: F403

__version__ = "1.7.1.116"


class NetworkDefinitionCreationFlag(trt.PybindEnum):
    """How a network is read."""

    STRONGLY_TYPED = 0


class PreviewFeature(trt.PybindEnum):
    """What must be asked for."""

    ALIASED_PLUGIN_IO_10_03 = 0
    RUNTIME_ACTIVATION_RESIZE_10_10 = 1


class ComputeCapability(trt.PybindEnum):
    """GPUs to build for."""

    NONE = 0
    CURRENT = 1
    SM75 = 75
    SM80 = 80
    SM86 = 86
    SM89 = 89
    SM120 = 120
    SM121 = 121


class IBuilderConfig(trt.IBuilderConfig):
    """Settings of a build, with the GPUs to build for."""

    @property
    def num_compute_capabilities(self) -> int:
        """GPUs to build for."""
        return len(self._capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count: int) -> None:
        self._capabilities = [None] * count

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        """One of the GPUs."""
        self._capabilities[index] = compute_capability
        return True

    def get_compute_capability(self, index: int) -> Any:
        """As set."""
        return self._capabilities[index]


class Builder(trt.Builder):
    """Builds ahead of time: needs no GPU."""

    _module, _version, _config = __name__, __version__, IBuilderConfig


class Runtime(trt.Runtime):
    """Runs engines of this version."""

    _module, _version = __name__, __version__
