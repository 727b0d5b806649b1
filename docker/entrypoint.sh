#!/bin/sh
# Start the trainer as whoever owns /outputs, so that what it writes belongs to the caller alone.
# With `docker run --user` there is nothing to change: that user is who we are.
set -eu
case "$* " in
    *" output_dir="* | *" --help "* | *" -h "*) ;;
    *" scripts/train_"*)
        if ! grep -q ' /outputs ' /proc/self/mountinfo; then
            echo "error: nothing is mounted at /outputs: the recording would go with the container." \
                "Pass -v FOLDER:/outputs to docker run" >&2
            exit 3
        fi ;;
esac
if [ "$(id -u)" = 0 ]; then
    owner=$(stat -c %u /outputs) group=$(stat -c %g /outputs)
    if [ "$owner" != 0 ]; then
        setpriv --reuid "$owner" --regid "$group" --clear-groups true 2> /dev/null || {
            echo "error: cannot become the owner of /outputs: $owner:$group. Pass --user $owner:$group to docker run" >&2
            exit 3
        }
        exec setpriv --reuid "$owner" --regid "$group" --clear-groups --no-new-privs -- "$@"
    fi
fi
exec "$@"
