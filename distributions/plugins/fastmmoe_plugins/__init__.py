# SPDX-License-Identifier: Apache-2.0
"""TensorRT plugin libraries of fastmmoe, in lib/ as in its checkout: that of x86-64, and folders for other machines."""
