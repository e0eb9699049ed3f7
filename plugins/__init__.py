# SPDX-License-Identifier: Apache-2.0
"""Native kernels of the operators (C++ and CUDA sources) and where their built libraries lie."""
