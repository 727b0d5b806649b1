"""`nest-ssl VERB ...`: each verb is the `main` of the file of its name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextvars import copy_context

from nest_ssl.base.arguments import PROGRAM
from nest_ssl.base.errors import UserError, run_command
from nest_ssl.base.spelling import did_you_mean

VERBS = {
    "data": "write the practice data and check its hashes",
    "doctor": "say what this environment, machine and settings come to, before anything is trained",
    "train": "train and record: nest-ssl train nest key=value ... (or nemo, in NeMo's environment)",
    "import": "make a folder of tensors, of what is no torch, a recording",
    "map": "draft or check a map from a candidate's names to the reference's",
    "compare": "compare two recordings and write the report",
    "explain": "gather evidence about their difference: bug or rounding, born here or came in",
    "bisect": "find the first of many steps that differs, and record it in full",
    "track": "say what changed from one NeMo to another, and whether the table of generations names it",
    "replay": "feed a recording of the reference to the modules of the candidate",
    "ops": "list the operators of a recorded step, or show where two sides run others",
    "bundle": "put a comparison into one file that others can check",
    "verify": "check such a file offline: what is shown again, and what is only claimed",
    "features": "write what layers of a trained encoder make of each utterance of a manifest",
    "export": "write a trained encoder as another library opens it: Hugging Face's ParakeetEncoder, or ONNX",
    "selftest": "plant faults and rewrites in the port, and measure what the comparer catches",
    "matrix": "train every variant of NeMo's model on both sides, and write docs/parity-matrix.md",
    "completion": "make a shell complete these verbs and their options",
    "bench": "time both trainers on this machine's CPU, and write docs/benchmarks.md",
    "gpu": "run both trainers on a GPU, compare and time them, and write docs/gpu.md",
}
USAGE = """usage: nest-ssl VERB ...

{verbs}

examples:
  nest-ssl data --out data/dummy_ssl
  nest-ssl train nest size=tiny batches=2 save_steps=0,1 output_dir=outputs/nest overwrite=true
  nest-ssl doctor nest size=large save_steps=0-9
  nest-ssl import made/ --out outputs/made
  nest-ssl map suggest --reference outputs/nemo --candidate outputs/made
  nest-ssl compare --reference outputs/nemo --candidate outputs/nest --out outputs/report
  nest-ssl explain --reference outputs/nemo --candidate outputs/nest --out outputs/report --evidence replay,floor
  nest-ssl bisect --reference outputs/nemo --candidate outputs/nest --steps 500
  nest-ssl track outputs/track/before outputs/track/after
  nest-ssl replay --reference outputs/nemo --candidate outputs/nest
  nest-ssl ops diff --reference outputs/nemo --candidate outputs/nest --module 'encoder.layers.0*'
  nest-ssl bundle comparison.tar --reference outputs/nemo --candidate outputs/nest --report outputs/report
  nest-ssl verify comparison.tar
  nest-ssl features model.nemo train.json --layers 6,-1 --out outputs/features
  nest-ssl export model.nemo --to parakeet --out outputs/parakeet
  nest-ssl selftest --only 'optimizer,*eps*'
  nest-ssl matrix --nemo-python .venv/nemo-3.0.0/bin/python --nest-python .venv/nest/bin/python
  nest-ssl completion bash
  nest-ssl bench --quick --nemo-python .venv/nemo-3.0.0/bin/python --nest-python .venv/nest/bin/python
  nest-ssl gpu --nemo-python .venv/nemo-3.0.0/bin/python --nest-python .venv/nest/bin/python
each verb has a --help of its own; make runs all of them in order: make align"""


def dispatch(argv: Sequence[str] | None = None) -> int:
    """Run the verb that comes first.

    Raises:
        UserError: there is no such verb.
    """
    verb, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if verb in ("-h", "--help"):
        print(USAGE.format(verbs="\n".join(f"  {name:<10} {what}" for name, what in VERBS.items())))
        return 0
    if verb not in VERBS:
        raise UserError("no such verb", repr(verb), did_you_mean(verb, VERBS, f"Choose one of: {', '.join(VERBS)}."))
    context = copy_context()
    context.run(PROGRAM.set, f"nest-ssl {verb}")
    run = importlib.import_module(f"nest_ssl.cli.{verb}").main  # only its own imports are waited for
    return int(context.run(run, rest))


def main() -> None:
    """The console script; ends the process with the verb's exit code."""
    run_command(dispatch)


if __name__ == "__main__":
    main()
