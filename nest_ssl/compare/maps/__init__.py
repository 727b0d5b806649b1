"""Maps of names that are shipped: `--names huggingface_parakeet`."""
