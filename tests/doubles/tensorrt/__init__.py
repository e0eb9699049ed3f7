# SPDX-License-Identifier: Apache-2.0
"""tensorrt over the simulated device, as JetPack 7.2 has it."""

from device_double import trt
from device_double.trt import *  # noqa: F403

__version__ = "10.16.2.10"


class NetworkDefinitionCreationFlag(trt.PybindEnum):
    """How a network is read."""

    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class PreviewFeature(trt.PybindEnum):
    """What must be asked for."""

    PROFILE_SHARING_0806 = 0
    ALIASED_PLUGIN_IO_10_03 = 1
    RUNTIME_ACTIVATION_RESIZE_10_10 = 2


class Builder(trt.Builder):
    """Builds for the GPU of the machine, which must be there."""

    _module, _version, _needs_gpu = __name__, __version__, True


class Runtime(trt.Runtime):
    """Runs engines of this version."""

    _module, _version = __name__, __version__
