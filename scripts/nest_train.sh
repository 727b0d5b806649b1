#!/bin/sh
# Train with the port and record it. Arguments are configuration overrides, Hydra's syntax:
#     scripts/nest_train.sh size=tiny save_steps=0,1,2 batches=3 overwrite=true
# Runs in .venv/nest, or on the Python that NEST_PYTHON names; from any folder.
root=$(CDPATH= cd -- "$(dirname -- "$(readlink -f -- "$0" || echo "$0")")/.." && pwd) || exit 3
variable=NEST_PYTHON python=${NEST_PYTHON:-$root/.venv/nest/bin/python}
. "$root/scripts/launch.sh"
launch "make setup" train_nest.py "$@"
