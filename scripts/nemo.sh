#!/bin/sh
# Train with NVIDIA NeMo and record it. Arguments are configuration overrides, Hydra's syntax:
#     scripts/nemo.sh size=tiny save_steps=0,1,2 batches=3 overwrite=true
# Runs in .venv/nemo-RELEASE, for the release that NEMO_VERSION or else docker/.env names, or on the Python that
# NEMO_PYTHON names; from any folder.
root=$(CDPATH= cd -- "$(dirname -- "$(readlink -f -- "$0" || echo "$0")")/.." && pwd) || exit 3
. "$root/docker/.env"
release=${NEMO_VERSION:-$DEFAULT_NEMO}
variable=NEMO_PYTHON python=${NEMO_PYTHON:-$root/.venv/nemo-$release/bin/python}
. "$root/scripts/launch.sh"
launch "make setup NEMO_VERSION=$release" train_nemo.py "$@"
