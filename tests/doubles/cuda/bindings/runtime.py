# SPDX-License-Identifier: Apache-2.0
"""cuda.bindings.runtime over the simulated device."""

from device_double.cuda_runtime import *  # noqa: F403
from device_double.cuda_streams import *  # noqa: F403
from device_double.cuda_types import *  # noqa: F403
