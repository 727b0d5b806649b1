#!/usr/bin/env bash
# Say "docker" or "local" on stdout, and on stderr why.  runtime.sh [docker]   (docker: it was asked for)
# Unasked, docker is taken where an engine answers and the images are there or can be built.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/common.sh

choose() { echo "runtime: $1 ($2)" >&2; echo "$1"; exit 0; }

if ! version=$(engine_version) || [ -z "$version" ]; then
    if [ "${1:-}" = docker ]; then fail "no Docker engine answers: RUNTIME=docker. Start one, or use RUNTIME=local"; fi
    choose local "no Docker engine answers"
fi
set_torch
device="torch for the CPU"
if [ "$TORCH" = cuda ]; then device="torch with CUDA"; fi
if ! has_nvidia; then device="$device, no GPU: the engine has no NVIDIA runtime"; fi
why="engine $version answers; $device"
if [ "${1:-}" = docker ]; then choose docker "asked for; $why"; fi
there() { [ -n "$(label_of "$(image_of "$1")" nest-ssl.source)" ]; }
if there nest && there nemo; then choose docker "$why. RUNTIME=local does without"; fi

# Not all images yet. Say now, not minutes later, when they cannot be built.
base=${BASE_IMAGE:-$(default_base)}
if [ "$TORCH" = cpu ] && [ -z "${TORCH_INDEX:-}${PIP_CONFIG:-}" ] && ! ls "$(wheel_folder)"/torch-*+cpu-* > /dev/null 2>&1; then
    choose local "engine $version answers, but images for the CPU need TORCH_INDEX or WHEELS"
fi
if ! docker image inspect "$base" > /dev/null 2>&1; then
    if [ -n "${DRY_RUN:-}" ]; then choose docker "$why; the base image $base would have to be fetched"; fi
    echo "runtime: getting the base image $base; RUNTIME=local does without" >&2
    docker pull --quiet "$base" > /dev/null 2>&1 || choose local "engine $version answers, but cannot get the base image $base"
fi
choose docker "$why; the images are built first. RUNTIME=local does without"
