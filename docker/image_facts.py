"""In a build: what this image is made of, as JSON. A recording made in it repeats these facts under `container`.

python image_facts.py NAME BASE_IMAGE BASE_ID GIT_COMMIT SOURCE_SHA256
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

LOCKS = Path(__file__).resolve().parent / "locks"


def main() -> None:
    name, base, base_id, commit, source = sys.argv[1:]
    facts = {
        "name": name,
        "base": base,
        "base_id": base_id or None,
        "locks": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(LOCKS.glob("*.lock"))},
        "git_commit": commit or None,
        "source_sha256": source or None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
    }
    json.dump(facts, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
