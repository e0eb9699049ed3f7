# SPDX-License-Identifier: Apache-2.0
"""Checks of a checkpoint's weights and of the written graphs."""
