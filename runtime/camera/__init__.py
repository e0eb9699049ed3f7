# SPDX-License-Identifier: Apache-2.0
"""The newest frame of a camera, answered within a budget of time."""
