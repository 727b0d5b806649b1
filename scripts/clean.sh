#!/usr/bin/env bash
# clean.sh OUT: what `make clean` removes there: nemo/ and nest/ that are recordings, report/ that is a report, evidence/,
# their logs, what killed runs left, all that in the folders of sizes too (keep_size.sh), and the practice data. A folder
# that only has such a name stays, and so does everything of a run that goes on, with the data that it reads.
set -eu
out=${1:?the folder that the runs wrote to}
shopt -s nullglob
busy=""

lives() { # PARTIAL: whether the process that writes it may still be there
    local process=${1##*.partial-}
    case $process in
        *"@$(hostname)") kill -0 "${process%%@*}" 2> /dev/null ;;
        *) [ -n "$(find "$1" -maxdepth 0 -mtime -1)" ] ;; # another machine's, or a container's: one day
    esac
}

clean() { # FOLDER
    local folder=$1 name index partial
    for name in nemo nest report evidence; do
        index=$folder/$name/recording.json
        if [ $name = report ]; then index=$folder/report/report.json; fi
        if [ $name = evidence ]; then index=$folder/evidence/gathered.json; fi
        for partial in "$folder/.$name".partial-*; do
            if lives "$partial"; then echo "clean: $folder/$name is being written, left alone" >&2; busy=yes; continue 2; fi
            rm -rf "$partial"
        done
        rm -rf "$folder/.$name".replaced-*
        if [ -f "$folder/$name/ranks.json" ]; then index=$folder/$name/ranks.json; fi # a recording of several ranks
        if [ -f "$index" ]; then rm -rf "${folder:?}/$name" "$folder/$name.log" "$folder/$name".rank_*.log
        elif [ -e "$folder/$name" ]; then echo "clean: $folder/$name holds no ${index##*/}, left alone" >&2
        elif [ $name != report ]; then rm -f "$folder/$name.log" "$folder/$name".rank_*.log
        fi
    done
}

clean "$out"
for size in tiny small medium large xlarge xxlarge; do
    if [ -d "$out/$size" ]; then clean "$out/$size"; rmdir "$out/$size" 2> /dev/null || true; fi
done
if [ -z "$busy" ]; then rm -rf "$out/.make.lock" "$(dirname "$0")"/../data/dummy_ssl "$(dirname "$0")"/../data/dummy_ssl_*/; fi
