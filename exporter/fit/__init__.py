# SPDX-License-Identifier: Apache-2.0
"""fastmmoe plan: what a model will need and how fast it can be at most, from its config.json alone."""
