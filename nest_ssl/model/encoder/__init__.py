"""The FastConformer: `encoder` first, then `subsampling`, `layer` and `attention`."""
