#!/usr/bin/env bash
# alone.sh exclusive|shared OUT COMMAND...: run COMMAND while nothing else of make's writes to OUT (exclusive: or reads it),
# or end with exit code 3 before anything of what is there is touched. The lock ends with COMMAND, however that ends, and
# with the last process that it leaves behind: a trainer that cleans up, or a loader's worker that is about to notice.
set -u
how=$1 out=$2
shift 2

lock() { # of descriptor 9, which COMMAND inherits; 1 where another process has it
    if command -v flock > /dev/null; then flock "--$how" --nonblock 9; return; fi
    python3 -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_NB | {"exclusive": fcntl.LOCK_EX, "shared": fcntl.LOCK_SH}[sys.argv[1]])
except BlockingIOError:
    sys.exit(1)
except OSError:
    sys.exit(2)  # of 1, which Python gives of any error, it would be said that another is at work' "$how"
}

# Where it cannot be written to, or cannot be locked, COMMAND itself says what is to be said. What is only read is not made.
if { [ "$how" = shared ] || mkdir -p "$out" 2> /dev/null; } && { : >> "$out/.make.lock"; } 2> /dev/null; then
    exec 9>> "$out/.make.lock"
    for try in 1 2 3 4 5; do # a moment, for what is done in one
        code=0
        lock 2> /dev/null || code=$?
        if [ "$code" != 1 ]; then break; fi
        if [ "$try" != 5 ]; then sleep 0.2; fi
    done
    if [ "$code" = 1 ]; then
        echo "error: another make is at work in this folder: $out. Wait until it has ended, or choose another: OUT=" >&2
        exit 3
    fi
    if [ "$code" = 127 ]; then echo "note: no flock and no python3 here: a second make in $out is not noticed" >&2; fi
fi
exec "$@"
