# SPDX-License-Identifier: Apache-2.0
"""TensorRT engines: profiles, building, and every call of the library."""
