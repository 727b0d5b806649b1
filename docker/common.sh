# shellcheck shell=bash
# Read by images.sh, run.sh and runtime.sh: which images, which engine, how to say no.
. docker/.env
NEMO_VERSION=${NEMO_VERSION:-$DEFAULT_NEMO}

fail() { echo "error: $*" >&2; exit 3; }

engine_version() { # nothing where no engine answers; one that hangs counts as none
    command -v docker > /dev/null || return 1
    if command -v timeout > /dev/null; then timeout 10 docker version --format '{{.Server.Version}}' 2> /dev/null
    else docker version --format '{{.Server.Version}}' 2> /dev/null; fi
}

has_nvidia() { docker info --format '{{range $name, $_ := .Runtimes}}{{$name}} {{end}}' 2> /dev/null | grep -qw nvidia; }

set_torch() { # the build of torch: the one asked for, else CUDA where the engine has the NVIDIA runtime
    if [ -z "${TORCH:-}" ]; then TORCH=cpu; if has_nvidia; then TORCH=cuda; fi; fi
    case $TORCH in cpu | cuda) ;; *) fail "no such build of torch: TORCH=$TORCH. Use cpu or cuda" ;; esac
}

image_of() { if [ "$1" = nemo ]; then echo "nest-ssl/nemo:$NEMO_VERSION-$TORCH"; else echo "nest-ssl/nest:$TORCH"; fi; }

label_of() { docker image inspect --format "{{index .Config.Labels \"$2\"}}" "$1" 2> /dev/null; } # IMAGE LABEL

default_base() { sed -n 's/^ARG BASE_IMAGE=//p' docker/Dockerfile; }

wheel_folder() { # WHEELS, else the folder where pip looks for wheels, if it has one
    local folder=${WHEELS:-${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links 2> /dev/null)}}
    if [ -n "${WHEELS:-}" ] && [ ! -d "$folder" ]; then fail "no such folder: WHEELS=$folder"; fi
    if [ -d "$folder" ]; then echo "$folder"; fi
}
