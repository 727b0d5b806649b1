# shellcheck shell=sh disable=SC2154
# Read by nemo.sh, nest_train.sh and compare_outputs.sh, which have set `root`, `python`
# and `variable`, the one that names another Python:  launch HINT SCRIPT ARGUMENTS
launch() {
    hint=$1 script=$2
    shift 2
    if [ -e "$python" ] && [ ! -x "$python" ]; then
        echo "error: not executable for you: $python. Ask its owner, or run $hint in a clone of your own" >&2
        exit 3
    fi
    if ! command -v "$python" > /dev/null; then
        echo "error: no Python for this: $python. Run $hint in $root, or set ${variable}" >&2
        exit 3
    fi
    # Only what setup has checked runs: a PYTHONPATH could put another torch before the environment's own.
    unset PYTHONPATH PYTHONHOME
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    exec "$python" "$root/scripts/$script" "$@"
}
