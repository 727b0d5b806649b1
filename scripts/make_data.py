"""Write the practice corpus, `data/dummy_ssl`: 12 utterances, 4 noises, 3 manifests; the same bytes on every machine.

python scripts/make_data.py --out data/dummy_ssl
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs before anything is installed

from nest_ssl.base.errors import run_command
from nest_ssl.cli.data import main

if __name__ == "__main__":
    run_command(main)
