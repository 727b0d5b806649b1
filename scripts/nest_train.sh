#!/bin/sh
# Train with the port and record it. Arguments are configuration overrides, Hydra's syntax:
#     scripts/nest_train.sh size=tiny save_steps=0,1,2 batches=3 overwrite=true
# Runs in .venv/nest, or on the Python that NEST_PYTHON names; from any folder.
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd) || exit 3
python=${NEST_PYTHON:-$root/.venv/nest/bin/python}
if ! command -v "$python" > /dev/null; then
    echo "error: no Python for this: $python. Run make setup in $root, or set NEST_PYTHON" >&2
    exit 3
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" "$root/scripts/train_nest.py" "$@"
