#!/bin/sh
# In a build: install what a lock holds, and nothing whose hash is another.  install.sh FOLDER LOCK | --editable PROJECT
# FOLDER is the environment itself, or a folder that is later laid over it: what is there already does not count then.
set -eu
folder=$1 lock=$2
secrets=/run/secrets
if [ -f $secrets/pip_config ]; then export PIP_CONFIG_FILE=$secrets/pip_config; fi
if [ -f $secrets/ca_bundle ]; then export PIP_CERT=$secrets/ca_bundle; fi
if [ -s $secrets/torch_index ]; then PIP_EXTRA_INDEX_URL=$(cat $secrets/torch_index); export PIP_EXTRA_INDEX_URL; fi

pip() { /opt/venv/bin/python -m pip --disable-pip-version-check --no-input "$@"; }
prefix=""
if [ "$folder" != /opt/venv ]; then prefix="--prefix $folder --ignore-installed"; fi

# A lock is whole, hence no dependencies; `pip check` in the finished image proves that. What is built from source is
# built with the locked tools that are already there, hence no isolation.
if [ "$lock" = --editable ]; then
    # shellcheck disable=SC2086
    pip install $prefix --no-index --no-deps --no-build-isolation --no-compile --editable "$3"
else
    # shellcheck disable=SC2086
    pip install $prefix --require-hashes --no-deps --requirement "/build/$lock" --find-links /wheels \
        --no-build-isolation --use-pep517 --no-compile --progress-bar off
fi
