#!/bin/sh
# Train with NVIDIA NeMo and record it. Arguments are configuration overrides, Hydra's syntax:
#     scripts/nemo.sh size=tiny save_steps=0,1,2 batches=3 overwrite=true
# Runs in .venv/nemo, or on the Python that NEMO_PYTHON names; from any folder.
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd) || exit 3
python=${NEMO_PYTHON:-$root/.venv/nemo/bin/python}
if ! command -v "$python" > /dev/null; then
    echo "error: no Python for this: $python. Run make setup in $root, or set NEMO_PYTHON" >&2
    exit 3
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" "$root/scripts/train_nemo.py" "$@"
