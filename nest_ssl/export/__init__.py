"""What a trained encoder is used for elsewhere.

features.py      what chosen layers make of every utterance of a manifest: a file each, or shar
onnx.py          the encoder as ONNX, compared with torch
parakeet.py      the encoder as Hugging Face's ParakeetEncoder
safetensors.py   a file of that format
trained.py       the model of an archive or a checkpoint, and the folder that an export goes to
"""
