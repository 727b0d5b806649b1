#!/bin/sh
# Compare two recordings and write the report:
#     scripts/compare_outputs.sh --reference outputs/nemo --candidate outputs/nest --out outputs/report
# Runs in .venv/nest, or on the Python that NEST_PYTHON names; from any folder.
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd) || exit 3
python=${NEST_PYTHON:-$root/.venv/nest/bin/python}
if ! command -v "$python" > /dev/null; then
    echo "error: no Python for this: $python. Run make setup in $root, or set NEST_PYTHON" >&2
    exit 3
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" "$root/scripts/compare_outputs.py" "$@"
