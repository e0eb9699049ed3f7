# SPDX-License-Identifier: Apache-2.0
"""The sections of scripts/gpu_acceptance.py, and what starts and records them."""
