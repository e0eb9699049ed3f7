# SPDX-License-Identifier: Apache-2.0
"""From modules to ONNX graphs, and passes over them."""
