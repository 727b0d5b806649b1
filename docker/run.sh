#!/usr/bin/env bash
# A trainer's Python, in its image:  run.sh nemo|nest SCRIPT [ARGUMENTS]   (paths as seen from the repository)
# No network, no privileges, nothing to write but OUT; what it writes belongs to the caller.
# Settings, from the environment: TORCH NEMO_VERSION OUT DATA MEMORY SHM GPUS OMP_NUM_THREADS
# DATA: folders of your own, read-only, with a colon between them: /a:/b
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/common.sh
if [ $# -lt 2 ]; then fail "usage: run.sh nemo|nest SCRIPT [ARGUMENTS]"; fi
subject=$1 script=$2
shift

engine_version > /dev/null || fail "no Docker engine answers: RUNTIME=docker. Start one, or use RUNTIME=local"
set_torch
case " $* " in *" trainer.accelerator=gpu "* | *" trainer.accelerator=cuda "*)
    if ! has_nvidia; then
        fail "no GPU can be had: the engine has no NVIDIA runtime. Install NVIDIA's container toolkit, or take DEVICE=cpu"
    elif [ "$TORCH" = cpu ]; then fail "no GPU can be had: TORCH=cpu. Take TORCH=cuda, or DEVICE=cpu"; fi ;;
esac
image=$(image_of "$subject")
image_id=$(docker image inspect --format '{{.Id}}' "$image" 2> /dev/null) || fail "no such image: $image. Run make images"

mounts=()
quoted() { printf '"%s=%s"' "$1" "${2//\"/\"\"}"; } # a field of docker's comma-separated list
mount() { # FOLDER ro|rw: at the same place inside, so that paths mean the same
    local inside=$1 outside
    case $1 in /*) ;; *) inside=/app/$1 ;; esac
    outside=$(cd "$1" 2> /dev/null && pwd) || fail "no such folder: $1"
    case $outside in *$'\n'*) fail "a folder's name with a line break cannot be mounted: $(printf %q "$outside")" ;; esac
    mounts+=(--mount "type=bind,$(quoted source "$outside"),$(quoted target "$inside")$(if [ "$2" = ro ]; then echo ,readonly; fi)")
}
make_folder() { mkdir -p "$1" 2> /dev/null || fail "cannot make the folder: $1. Choose one that you may write to"; }
mount_data() { # FOLDERS: between colons; with spaces between them too, as long as that can mean only one thing
    local folders=() folder part
    IFS=: read -r -a folders <<< "$1"
    for folder in ${folders[@]+"${folders[@]}"}; do
        if [ -d "$folder" ]; then mount "$folder" ro; continue; fi
        # shellcheck disable=SC2086
        for part in $folder; do mount "$part" ro; done
    done
}

if [ "$script" = scripts/make_data.py ]; then mount data rw; else mount data ro; fi
mount_data "${DATA:-}"
out=${OUT:-outputs}
make_folder "$out"
root=$(pwd -P)
case $(cd "$out" && pwd -P)/ in
    "$root"/outputs/*) ;;
    "$root"/[!/]*/)
        # mounted over the code of the image, a folder of the checkout would hide it, and what is written makes images stale
        inside=$(cd "$out" && pwd -P) inside=${inside#"$root"/}
        case ${inside%%/*} in conf | data | docker | nest_ssl | scripts | tests | .git | .venv | .ci)
            fail "OUT=$out is a folder of this repository's own. Choose another" ;; esac ;;
    *) case $root/ in "$(cd "$out" && pwd -P)"/*) fail "OUT=$out holds this repository. Choose a folder in it, or elsewhere" ;; esac ;;
esac
mount "$out" rw

user=$(id -u):$(id -g)
# In a rootless engine the caller is called root.
if docker info --format '{{.SecurityOptions}}' | grep -q rootless; then user=0:0; fi
memory=${MEMORY:-$(($(docker info --format '{{.MemTotal}}') * 9 / 10))}
options=(--user "$user" --network none --read-only --tmpfs "/tmp:rw,exec,nosuid,nodev" --cap-drop ALL --init
    --security-opt no-new-privileges --memory "$memory" --memory-swap "$memory" --shm-size "${SHM:-4g}" --pids-limit 4096
    --env "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}" --env "NEST_SSL_IMAGE_ID=$image_id" --env NEST_SSL_TRACEBACK
    --env NEST_SSL_COMMAND)
if [ "$TORCH" = cuda ] && has_nvidia; then options+=(--gpus "${GPUS:-all}"); fi

name=nest-ssl-$subject-$$
code=0
trap 'docker rm --force "$name" > /dev/null 2>&1' EXIT
trap 'docker stop --time 20 "$name" > /dev/null 2>&1' INT TERM
docker run --name "$name" "${options[@]}" "${mounts[@]}" --entrypoint python "$image" "$@" &
wait $! || code=$?
if [ $code -gt 128 ] && [ "$(docker inspect --format '{{.State.Running}}' "$name" 2> /dev/null)" = true ]; then
    code=0; wait $! || code=$? # a signal ended the waiting, not the container
fi
if [ "$(docker inspect --format '{{.State.OOMKilled}}' "$name" 2> /dev/null)" = true ] && [ $code = 137 ]; then
    echo "error: out of memory: $subject needs more than MEMORY=$memory. Raise it, or take a smaller SIZE" >&2
fi
exit $code
