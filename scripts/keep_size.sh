#!/usr/bin/env bash
# keep_size.sh OUT SIZE: before a model of SIZE is recorded into OUT, what another size has left there moves to
# OUT/THAT_SIZE, in the place of what that size has there. Which size it was stands in OUT/.size.
set -eu
out=${1:?the folder that the runs write to} size=${2:?its model size}
before=$(cat "$out/.size" 2> /dev/null || echo "$size")

index() { # NAME: the file that makes such a folder one of ours
    case $1 in report) echo report.json ;; evidence) echo gathered.json ;; *) echo recording.json ;; esac
}

names=""
if [ "$before" != "$size" ]; then
    for name in nemo nest report evidence; do
        [ -f "$out/$name/$(index $name)" ] || continue
        kept=$out/$before/$name
        if [ -e "$kept" ] && [ ! -f "$kept/$(index $name)" ]; then
            echo "error: $kept holds no $(index $name), and $name of SIZE=$before would go there. Move it away" >&2
            exit 3
        fi
        names="$names $name"
    done
fi
for name in $names; do
    mkdir -p "$out/$before"
    rm -rf "${out:?}/$before/$name" "$out/$before/$name.log"
    mv "$out/$name" "$out/$before/"
    if [ -f "$out/$name.log" ]; then mv "$out/$name.log" "$out/$before/"; fi
done
if [ -n "$names" ]; then
    names=${names# }
    echo "note: ${names// /, } in $out are of SIZE=$before: kept in $out/$before"
fi
mkdir -p "$out"
echo "$size" > "$out/.size"
