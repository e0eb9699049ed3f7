# SPDX-License-Identifier: Apache-2.0
"""Measuring: resampling, latency, machines."""
