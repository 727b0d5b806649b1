"""Masks on features: `random_blocks` is the module, the other two draw the blocks."""
