#!/usr/bin/env bash
# Build both images and prove each: it imports, `pip check` is clean, the versions are those of the locks, nest has no NeMo.
#   images.sh [--if-stale] [nemo|nest]    --if-stale: only what is missing, or older than the files it is made of
# Settings, from the environment: TORCH NEMO_VERSION BASE_IMAGE WHEELS TORCH_INDEX PIP_CONFIG CA_BUNDLE BUILD_ARGS
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/common.sh
logs=.venv
if_stale=""
if [ "${1:-}" = --if-stale ]; then if_stale=yes; shift; fi
subjects=${*:-nest nemo}

sha256() { if command -v sha256sum > /dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }

source_hash() { # of everything that goes into an image
    find .dockerignore LICENSE pyproject.toml conf data/dummy_ssl.sha256 data/dummy_ssl_kinds.sha256 nest_ssl scripts docker/*.py docker/Dockerfile \
        docker/install.sh docker/entrypoint.sh docker/locks/*.lock docker/locks/*.apt -type f ! -path '*/__pycache__/*' -print0 |
        LC_ALL=C sort -z | while IFS= read -r -d '' file; do sha256 "$file"; done | sha256 | cut -c 1-64
}

git_commit() {
    git rev-parse HEAD 2> /dev/null || return 0
    if [ -n "$(git status --porcelain --untracked-files=no 2> /dev/null)" ]; then echo dirty; fi
}

explain() { # LOG: what failed, in one line
    if grep -q "No space left on device" "$1"; then echo "no space left on the engine's disk"
    elif grep -q "CERTIFICATE_VERIFY_FAILED" "$1"; then
        echo "the package index has a certificate that the image does not trust: name yours with CA_BUNDLE=FILE"
    elif grep -q "connection broken by\|Could not fetch URL" "$1"; then
        echo "no answer from the package index. Check the network, or PIP_CONFIG=FILE with an index of your own"
    elif grep -q "No matching distribution found for torch==.*+cpu" "$1"; then
        echo "no CPU wheel of torch within reach: set TORCH_INDEX to an index, or WHEELS to a folder that has one"
    elif grep -q "DO NOT MATCH THE HASHES" "$1"; then
        echo "a download has another hash than the lock: $(grep -m 1 -o '[a-z0-9_.-]*==[^ ]* from .*' "$1" || true)"
    elif grep -q "failed to resolve source metadata\|pull access denied\|failed to do request" "$1"; then
        echo "cannot get the base image: $base. Check the network, or name one that is here: BASE_IMAGE="
    else echo "the build stopped: $(grep -i 'error' "$1" | tail -n 1 | cut -c 1-200)"; fi
}

lock_of() { if [ "$1" = nemo ]; then echo "docker/locks/nemo-$NEMO_VERSION-$TORCH.lock"; else echo "docker/locks/nest-$TORCH.lock"; fi; }

pinned() { sed -n "s/^$1==\([^ ]*\).*/\1/p" "docker/locks/torch-$TORCH.lock" | head -1; } # PACKAGE

build_tools() { # Debian packages that this release of NeMo has to be built with; most need none
    local list=docker/locks/nemo-$NEMO_VERSION.apt
    if [ -f "$list" ]; then sed '/^#/d' "$list" | paste -s -d ' ' -; fi
}

build() { # nemo|nest
    local image replaced options=() started=$SECONDS log=$logs/image-$1.log
    image=$(image_of "$1")
    replaced=$(docker image inspect --format '{{.Id}}' "$image" 2> /dev/null || true)
    options+=(--build-arg "TORCH=$TORCH" --build-arg "BASE_IMAGE=$base" --build-arg "BASE_ID=$base_id")
    options+=(--build-arg "GIT_COMMIT=$commit" --build-arg "SOURCE_SHA256=$source")
    options+=(--build-arg "TORCH_VERSION=$(pinned torch)" --build-arg "CUDA_VERSION=$(pinned cuda-toolkit)")
    if [ "$1" = nemo ]; then
        options+=(--build-arg "NEMO_VERSION=$NEMO_VERSION" --build-arg "BUILD_TOOLS=$(build_tools)")
    else
        options+=(--build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)")
    fi
    if [ -n "$wheels" ]; then options+=(--build-context "wheels=$wheels"); fi
    if [ -n "${TORCH_INDEX:-}" ]; then options+=(--secret "id=torch_index,env=TORCH_INDEX"); fi
    if [ -n "${PIP_CONFIG:-}" ]; then options+=(--secret "id=pip_config,src=$PIP_CONFIG"); fi
    if [ -n "${CA_BUNDLE:-}" ]; then options+=(--secret "id=ca_bundle,src=$CA_BUNDLE"); fi
    # An engine without its usual bridge has no other network to build with.
    if ! docker network inspect bridge > /dev/null 2>&1; then options+=(--network host); fi
    echo "images: building $image on $base (log: $log)"
    # shellcheck disable=SC2086  # BUILD_ARGS holds several options
    docker build --progress plain --file docker/Dockerfile --target "$1" --tag "$image" "${options[@]}" ${BUILD_ARGS:-} . \
        > "$log" 2>&1 || fail "$image: $(explain "$log"). The whole output: $log"
    if [ "$(docker image inspect --format '{{len .RepoTags}}' "${replaced:-none}" 2> /dev/null)" = 0 ]; then
        docker image rm "$replaced" > /dev/null 2>&1 || true # it has no name any more
    fi
    prove "$1" "$image" $((SECONDS - started))
}

prove() { # nemo|nest IMAGE SECONDS: the same check that `make setup` makes of an environment
    local megabytes lock facts
    lock=$(lock_of "$1")
    megabytes=$(($(docker image inspect --format '{{.Size}}' "$2") / 1000000))
    facts=$(docker run --rm --network none --read-only --tmpfs /tmp:exec --cap-drop ALL --user 65534:65534 --entrypoint python "$2" \
        -W ignore scripts/check_environment.py "$1" docker/locks/build.lock "docker/locks/torch-$TORCH.lock" "$lock" \
        2>> "$logs/image-$1.log") ||
        fail "$2 was built, but does not work: $(tail -n 1 "$logs/image-$1.log"). The whole output: $logs/image-$1.log"
    echo "images: $2 is ready and proved ($3 s, $megabytes MB): $facts"
}

stale() { # nemo|nest: whether its image is missing, older than its files, or on another base than asked for
    local image
    image=$(image_of "$1")
    if [ "$(label_of "$image" nest-ssl.source)" != "$source" ]; then return 0; fi
    if [ -n "${BASE_IMAGE:-}" ] && [ "$(label_of "$image" org.opencontainers.image.base.digest)" != "$base_id" ]; then return 0; fi
    return 1
}

engine_version > /dev/null || fail "no Docker engine answers. Start one"
set_torch
for subject in $subjects; do
    if [ ! -f "$(lock_of "$subject")" ]; then
        fail "no lock for this NeMo: $(lock_of nemo). Use one of: $(cd docker/locks && echo nemo-*-"$TORCH".lock)"
    fi
done
wheels=$(wheel_folder)
# What was chosen once is kept until chosen again.
base=${BASE_IMAGE:-$(label_of "$(image_of nest)" org.opencontainers.image.base.name || true)}
base=${base:-$(default_base)}
case $base in
    *@sha256:*) base_id=${base##*@} ;;
    *) base_id=$(docker image inspect --format '{{.Id}}' "$base" 2> /dev/null) ||
        { docker pull --quiet "$base" > /dev/null 2>&1 && base_id=$(docker image inspect --format '{{.Id}}' "$base"); } ||
        fail "cannot get the base image: $base. Check the network, or name one that is here: BASE_IMAGE=" ;;
esac
source=$(source_hash)
commit=$(git_commit | paste -s -d - -)
mkdir -p "$logs"
for subject in $subjects; do
    if [ -z "$if_stale" ] || stale "$subject"; then build "$subject"; fi
done
