#!/bin/sh
# Train with NVIDIA NeMo and record it. Arguments are configuration overrides, Hydra's syntax:
#     scripts/nemo.sh size=tiny save_steps=0,1,2 batches=3 overwrite=true
# Runs in .venv/nemo-3.0.0, or in that of another NEMO_VERSION, or on the Python that NEMO_PYTHON names; from any folder.
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd) || exit 3
release=${NEMO_VERSION:-3.0.0}
python=${NEMO_PYTHON:-$root/.venv/nemo-$release/bin/python}
if ! command -v "$python" > /dev/null; then
    echo "error: no Python for this: $python. Run make setup NEMO_VERSION=$release in $root, or set NEMO_PYTHON" >&2
    exit 3
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" "$root/scripts/train_nemo.py" "$@"
