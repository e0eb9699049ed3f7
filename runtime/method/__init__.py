# SPDX-License-Identifier: Apache-2.0
"""Pruning methods: their settings, and what a request makes of them."""
