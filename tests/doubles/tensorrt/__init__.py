# SPDX-License-Identifier: Apache-2.0
"""tensorrt over the simulated device: of JetPack 7.2, or the version that $FASTMMOE_DOUBLE_TENSORRT names."""

import os
from typing import Any

from device_double import trt
from device_double.trt import *  # noqa: F403

JETPACK_6, JETPACK_7, NEWEST = "10.3.0", "10.16.2.10", "11.4.0.106"

__version__ = os.environ.get("FASTMMOE_DOUBLE_TENSORRT", JETPACK_7)

# Flags have other numbers in other versions.
_FLAGS = {
    JETPACK_6: ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, {"PROFILE_SHARING_0806": 0, "ALIASED_PLUGIN_IO_10_03": 1}),
    JETPACK_7: ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, {"PROFILE_SHARING_0806": 0, "ALIASED_PLUGIN_IO_10_03": 1}),
    NEWEST: ({"STRONGLY_TYPED": 0}, {"ALIASED_PLUGIN_IO_10_03": 0}),
}
_networks, _features = _FLAGS[__version__]
NetworkDefinitionCreationFlag = trt.PybindEnum("NetworkDefinitionCreationFlag", _networks)
PreviewFeature = trt.PybindEnum("PreviewFeature", _features)


class _Absent:
    """A method that the version does not have."""

    def __get__(self, *_: object) -> Any:
        raise AttributeError(f"TensorRT {__version__} does not have it")


class ICudaEngine(trt.ICudaEngine):
    """An engine."""

    if __version__ == JETPACK_6:
        get_aliased_input_tensor = _Absent()


class Builder(trt.Builder):
    """Builds for the GPU of the machine, which must be there."""

    _module, _version, _needs_gpu = __name__, __version__, True
    if __version__ == JETPACK_6:
        build_serialized_network_to_stream = _Absent()


class Runtime(trt.Runtime):
    """Runs engines of this version."""

    _module, _version, _engine = __name__, __version__, ICudaEngine


if __version__ == JETPACK_6:
    for _name in ("IStreamReaderV2", "IStreamWriter", "SeekPosition"):
        del globals()[_name]
