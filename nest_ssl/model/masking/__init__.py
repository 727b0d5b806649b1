"""Masks on features. Blocks: `random_blocks` is the module, `whole_batch` and `per_utterance` draw them. Zeros:
`patches` and `spec_augment`."""
