# SPDX-License-Identifier: Apache-2.0
"""What other programs load: Polygraphy's runner and files, Triton's model repository."""
