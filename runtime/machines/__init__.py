# SPDX-License-Identifier: Apache-2.0
"""Targets, devices and what this machine has."""
