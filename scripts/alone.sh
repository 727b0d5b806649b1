#!/usr/bin/env bash
# alone.sh exclusive|shared OUT COMMAND...: run COMMAND while nothing else of make's writes to OUT (exclusive: or reads it),
# or end with exit code 3 before anything of what is there is touched. The lock ends with COMMAND, however that ends, and
# with the last process that it leaves behind: a trainer that cleans up, or a loader's worker that is about to notice.
set -u
how=$1 out=$2
shift 2

taken=75 # where another process has the lock: neither flock nor Python ends so of anything else
lock() { # of descriptor 9, which COMMAND inherits
    if command -v flock > /dev/null; then flock "--$how" --nonblock --conflict-exit-code "$taken" 9; return; fi
    python3 -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_NB | {"exclusive": fcntl.LOCK_EX, "shared": fcntl.LOCK_SH}[sys.argv[1]])
except BlockingIOError:
    sys.exit(int(sys.argv[2]))' "$how" "$taken"
}

# Where it cannot be written to, COMMAND itself says what is to be said. What is only read is not made.
if { [ "$how" = shared ] || mkdir -p "$out" 2> /dev/null; } && { : >> "$out/.make.lock"; } 2> /dev/null; then
    exec 9>> "$out/.make.lock"
    for try in 1 2 3 4 5; do # a moment, for what is done in one
        code=0
        lock 2> /dev/null || code=$?
        if [ "$code" != "$taken" ]; then break; fi
        if [ "$try" != 5 ]; then sleep 0.2; fi
    done
    case $code in
        0) ;;
        "$taken")
            echo "error: another make is at work in this folder: $out. Wait until it has ended, or choose another: OUT=" >&2
            exit 3 ;;
        127) echo "note: no flock and no python3 here: a second make in $out is not noticed" >&2 ;;
        *) echo "note: $out cannot be locked here: a second make in it is not noticed" >&2 ;; # as on some network disks
    esac
fi
exec "$@"
