# SPDX-License-Identifier: Apache-2.0
"""What scripts/damage_check.py is made of: damages, and trials of commands on damaged copies."""
