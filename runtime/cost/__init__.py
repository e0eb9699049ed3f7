# SPDX-License-Identifier: Apache-2.0
"""Costs of a request: FLOPs, and the retention that a budget allows."""
