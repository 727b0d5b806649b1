#!/usr/bin/env bash
# explain.sh ARGUMENTS: `nest-ssl explain` with each of its commands in a container of its own, one after the other.
# What is planned, and what is made of it at the end, is the port's container's; a command that fails leaves its log.
# A signal stops the container that runs and starts no other.
set -euo pipefail
cd "$(dirname "$0")/.."
stopped=0 child=
stop() { stopped=$1; if [ -n "$child" ]; then kill -TERM "$child" 2> /dev/null || true; fi; }
trap 'stop 130' INT
trap 'stop 143' TERM

in_container() { # nest|nemo-RELEASE SCRIPT [ARGUMENTS]
    local subject=nest version=${NEMO_VERSION:-} code=0
    case $1 in nemo-*) subject=nemo version=${1#nemo-} ;; esac
    shift
    if [ "$stopped" != 0 ]; then exit "$stopped"; fi
    NEMO_VERSION=$version docker/run.sh "$subject" "$@" < /dev/null & # in the background, for a signal to be heard at once
    child=$!
    wait "$child" || code=$?
    if [ "$stopped" != 0 ]; then wait "$child" || true; exit "$stopped"; fi
    child=
    return $code
}

folder=${OUT:-outputs}/evidence
mkdir -p "$folder"
in_container nest scripts/explain.py --plan "$@" > "$folder/explain-plan.log"
while IFS= read -r line; do
    [ -n "$line" ] || continue
    log=${line%% *} rest=${line#* }
    words=()
    while IFS= read -r word; do words+=("$word"); done < <(xargs printf '%s\n' <<< "${rest#* }")
    echo "explain: $log"
    in_container "${rest%% *}" "${words[@]}" > "$folder/$log.log" 2>&1 ||
        echo "explain: $log: exit code $?: $(tail -n 1 "$folder/$log.log")"
done < "$folder/explain-plan.log"
in_container nest scripts/explain.py --collect "$@"
