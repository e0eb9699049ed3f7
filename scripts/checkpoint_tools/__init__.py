# SPDX-License-Identifier: Apache-2.0
"""What scripts/make_random_checkpoint.py is made of: the published models' files, their tensors, random values."""
