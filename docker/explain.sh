#!/usr/bin/env bash
# explain.sh ARGUMENTS: `nest-ssl explain` with each of its commands in a container of its own, one after the other.
# What is planned, and what is made of it at the end, is the port's container's; a command that fails leaves its log.
set -euo pipefail
cd "$(dirname "$0")/.."
plan=$(docker/run.sh nest scripts/explain.py --plan "$@")
folder=${OUT:-outputs}/evidence
while IFS= read -r line; do
    [ -n "$line" ] || continue
    log=${line%% *} rest=${line#* }
    side=${rest%% *} words=()
    while IFS= read -r word; do words+=("$word"); done < <(xargs printf '%s\n' <<< "${rest#* }")
    echo "explain: $log"
    subject=nest
    if [ "$side" = reference ]; then subject=nemo; fi
    docker/run.sh "$subject" "${words[@]}" > "$folder/$log.log" 2>&1 < /dev/null ||
        echo "explain: $log: exit code $?: $(tail -n 1 "$folder/$log.log")"
done <<< "$plan"
docker/run.sh nest scripts/explain.py --collect "$@"
