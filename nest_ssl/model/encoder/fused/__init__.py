"""A Conformer layer's residual branches, each one autograd function: the same bits in less time and half the memory.

`nest_ssl/model/encoder/layer.py` is the layer as the paper has it, and what runs wherever a hook may look at a module
in it. These run elsewhere, see `choice.py`. They call the same kernels on tensors of the same layout in the same order,
but for pointwise convolutions and what attention does with pairs of frames: there products of tensors as they lie, and
compiled loops, stand in, tried before they are used. What they save is memory that is touched: dropout is kept as
booleans, sums and products are written over what is no longer needed, and what is cheap (norms, most activations,
dropout's products) is computed again in backward, not kept.
A gradient that is to be differentiated again (`create_graph=True`) they refuse, see `kernels/once.py`: any hook in the
layer opens it.

`tests/model/test_fused.py` holds output, gradients, buffers and generators of both ways to the last bit.
"""
