# SPDX-License-Identifier: Apache-2.0
"""Stands before the real cuda.bindings where this folder comes first on the path."""

__version__ = "13.0.3"
