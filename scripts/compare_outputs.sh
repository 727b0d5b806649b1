#!/bin/sh
# Compare two recordings and write the report:
#     scripts/compare_outputs.sh --reference outputs/nemo --candidate outputs/nest --out outputs/report
# Runs in .venv/nest, or on the Python that NEST_PYTHON names; from any folder.
root=$(CDPATH= cd -- "$(dirname -- "$(readlink -f -- "$0" || echo "$0")")/.." && pwd) || exit 3
variable=NEST_PYTHON python=${NEST_PYTHON:-$root/.venv/nest/bin/python}
. "$root/scripts/launch.sh"
launch "make setup" compare_outputs.py "$@"
