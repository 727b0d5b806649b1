#!/usr/bin/env bash
# with_words.sh WORDS COMMAND...: run COMMAND with WORDS added to it. make passes ARGS and its like through here: WORDS are
# split at spaces, and quotes hold together what has one; unlike in a shell, nothing in them is run or replaced.
set -eu
words=$1
shift
if [ -n "${words//[[:space:]]/}" ]; then
    split=$(xargs printf '%s\n' <<< "$words" 2> /dev/null) ||
        { echo "error: a quote is not closed: $words. Close it" >&2; exit 3; }
    while IFS= read -r word; do set -- "$@" "$word"; done <<< "$split"
fi
exec "$@"
