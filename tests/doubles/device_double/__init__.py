# SPDX-License-Identifier: Apache-2.0
"""A host double of CUDA and TensorRT; see docs/device-double.md."""
