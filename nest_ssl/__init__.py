"""An independent NEST trainer, and the recorder and comparer that prove it trains as NVIDIA NeMo's does.

Three wings, to be read in this order, each room from its own `__init__.py`. What stands higher may import what stands
lower, never the other way, and import-linter holds it (pyproject.toml):

    the proof     base, recording, record, compare, report: what a stranger must trust. A recorder for any torch model,
                  a comparer of any two recordings; they know neither the model nor the trainer nor the data
    the port      releases, data, practice, model: NeMo's batches and NeMo's model in own code
    the trainer   config, train, run, cli: what trains and records it, from the command line down
"""

__version__ = "0.1.0"
