#!/usr/bin/env bash
# keep_size.sh OUT SIZE: before a model of SIZE is recorded into OUT, what another size has left there moves to
# OUT/THAT_SIZE, in the place of what that size has there. A recording says its size itself, in its command; report and
# evidence are of NeMo's recording, or of the port's where there is none.
set -eu
shopt -s nullglob
out=${1:?the folder that the runs write to} size=${2:?its model size}

is_ours() { # FOLDER: whether it is a recording (of several ranks, too), a report or evidence
    case ${1##*/} in
        report) [ -f "$1/report.json" ] ;;
        evidence) [ -f "$1/gathered.json" ] ;;
        *) [ -f "$1/recording.json" ] || [ -f "$1/ranks.json" ] ;;
    esac
}

size_of() { # RECORDING: nothing where its command names no size
    for index in "$1/recording.json" "$1/rank_0/recording.json"; do
        if [ -f "$index" ]; then sed -n 's/^ *"size=\([a-z]*\)",\{0,1\}$/\1/p' "$index" | tail -n 1; return; fi
    done
}

nemo=$(size_of "$out/nemo") nest=$(size_of "$out/nest")
before() { # NAME: the size that is there
    case $1 in nemo) echo "$nemo" ;; nest) echo "$nest" ;; *) echo "${nemo:-$nest}" ;; esac
}

names=""
for name in report evidence nemo nest; do # the recordings last: where this is interrupted, they still say the size
    old=$(before $name)
    if [ -z "$old" ] || [ "$old" = "$size" ] || ! is_ours "$out/$name"; then continue; fi
    if [ -e "$out/$old/$name" ] && ! is_ours "$out/$old/$name"; then
        echo "error: $out/$old/$name is nothing of ours, and $name of SIZE=$old would go there. Move it away" >&2
        exit 3
    fi
    names="$names $name"
done
for name in $names; do
    kept=$out/$(before "$name")
    mkdir -p "$kept"
    rm -rf "${kept:?}/$name" "$kept/$name.log" "$kept/$name".rank_*.log
    for log in "$out/$name.log" "$out/$name".rank_*.log; do
        if [ -f "$log" ]; then mv "$log" "$kept/"; fi
    done
    mv "$out/$name" "$kept/"
    echo "note: $out/$name is of SIZE=$(before "$name"): kept in $kept"
done
