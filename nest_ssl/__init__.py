"""An independent NEST trainer, and the recorder and comparer that prove it trains as NVIDIA NeMo's does."""

__version__ = "0.1.0"
