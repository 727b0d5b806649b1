"""What a trained encoder is used for elsewhere.

features.py   what chosen layers make of every utterance of a manifest, a file each
parakeet.py   the encoder as Hugging Face's ParakeetEncoder
"""
