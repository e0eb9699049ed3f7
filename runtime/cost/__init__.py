# SPDX-License-Identifier: Apache-2.0
"""What a request costs: FLOPs, and the retention that a budget allows."""
