# SPDX-License-Identifier: Apache-2.0
"""What scripts/benchmark_methods.py is made of: the checkpoint it runs, the machine's rates, the runs, the tables."""
