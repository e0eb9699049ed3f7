# SPDX-License-Identifier: Apache-2.0
"""Reading a checkpoint: configuration, tokenizer, processor, tensors."""
