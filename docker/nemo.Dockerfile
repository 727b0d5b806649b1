# NVIDIA NeMo's trainer in an image. nest.Dockerfile is its twin: the same base and torch, and the stages down to
# `torch` word for word, so that the engine builds and keeps them once.
#
#     make images                                          or by hand, from the repository's root:
#     docker build -f docker/nemo.Dockerfile -t nest-ssl/nemo .
#
# For builds behind a company's walls; nothing of these stays in the image or in its history:
#     --build-context wheels=FOLDER                        a folder of wheels to look into first
#     --secret id=pip_config,src=pip.conf                  pip's configuration: an index of your own, a proxy, passwords
#     --secret id=ca_bundle,src=ca.pem                     certificates to trust
#     --secret id=torch_index,env=TORCH_INDEX              an index of CPU wheels of torch, for --build-arg TORCH=cpu
ARG BASE_IMAGE=nvidia/cuda:13.0.3-base-ubuntu24.04@sha256:7c7413a56200486f71f181cad9310f6fd31b6bb21816ade15fc9c1e1e927a5c1

# Empty, unless --build-context wheels=FOLDER takes its place.
FROM scratch AS wheels
WORKDIR /wheels

# The base's own Python: 3.12 on Ubuntu 24.04. torch's wheels bring CUDA, cuDNN and NCCL of their own.
FROM ${BASE_IMAGE} AS python
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/ldconfig/aux-cache /var/log/apt /var/log/dpkg.log

# --- torch: one layer for both trainers, 5 GB with CUDA. The import leaves the byte code of what it needed.
FROM python AS torch
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/venv
ARG TORCH=cuda
COPY docker/install.sh docker/locks/torch-${TORCH}.lock /build/
RUN --mount=type=cache,id=nest-ssl-pip,target=/root/.cache/pip --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_config --mount=type=secret,id=ca_bundle --mount=type=secret,id=torch_index \
    /build/install.sh /opt/venv torch-${TORCH}.lock \
 && /opt/venv/bin/python -W ignore -c 'import torch, torch._dynamo, torch.distributed, torch.utils.data'

# --- everything else, in a folder of its own: torch's layer stays as it is
FROM torch AS packages
ARG NEMO_VERSION=3.0.0
# Debian packages to build with, for a release whose lock has a list of them beside it: nemo-2.4.1.apt.
ARG BUILD_TOOLS=""
# hadolint ignore=DL3008,SC2086
RUN test -z "${BUILD_TOOLS}" \
 || { apt-get update && apt-get install --yes --no-install-recommends ${BUILD_TOOLS} && rm -rf /var/lib/apt/lists/*; }
COPY docker/locks/build.lock docker/locks/nemo-${NEMO_VERSION}-${TORCH}.lock /build/
RUN --mount=type=cache,id=nest-ssl-pip,target=/root/.cache/pip --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_config --mount=type=secret,id=ca_bundle --mount=type=secret,id=torch_index \
    /build/install.sh /opt/venv build.lock \
 && /build/install.sh /opt/packages nemo-${NEMO_VERSION}-${TORCH}.lock
WORKDIR /app
COPY pyproject.toml LICENSE ./
RUN mkdir nest_ssl && touch nest_ssl/__init__.py \
 && /build/install.sh /opt/packages --editable /app \
 && PYTHONPATH="$(echo /opt/packages/lib/python3*/site-packages)" \
    /opt/venv/bin/python -W ignore -c 'import nemo.collections.asr.models'

# --- what is shipped: no pip cache, no compiler
FROM python
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin nest \
 && install --directory --owner nest --group nest /outputs
COPY --from=torch /opt/venv /opt/venv
COPY --from=packages /opt/packages /opt/venv

# The same numbers everywhere: one thread, fixed hashes, repeatable cuBLAS. The same memory on both sides: glibc's arenas
# and CUDA's segments. Everything that wants to be written goes to /tmp, for the rest may be mounted read-only.
ENV PATH=/opt/venv/bin:$PATH \
    OMP_NUM_THREADS=1 PYTHONHASHSEED=0 CUBLAS_WORKSPACE_CONFIG=:4096:8 \
    MALLOC_ARENA_MAX=4 PYTORCH_ALLOC_CONF=expandable_segments:True \
    HOME=/tmp USER=nest NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 NEST_SSL_IMAGE=/app/image.json

# The practice corpus is in the image too, so that it runs with nothing mounted but /outputs.
WORKDIR /app
COPY pyproject.toml LICENSE ./
COPY docker/entrypoint.sh docker/image_facts.py docker/prove.py docker/
COPY data/dummy_ssl.sha256 data/
COPY conf conf
COPY scripts scripts
COPY nest_ssl nest_ssl
RUN python -m compileall -q nest_ssl && python scripts/make_data.py && ln -s /outputs outputs && chmod -R a+rX .

ARG TORCH=cuda
ARG NEMO_VERSION=3.0.0
ARG BASE_IMAGE
ARG BASE_ID=""
ARG GIT_COMMIT=""
ARG SOURCE_SHA256=""
ARG TORCH_VERSION=""
ARG CUDA_VERSION=""
COPY docker/locks/torch-${TORCH}.lock docker/locks/nemo-${NEMO_VERSION}-${TORCH}.lock docker/locks/
RUN python docker/image_facts.py "nemo" "${BASE_IMAGE}" "${BASE_ID}" "${GIT_COMMIT}" "${SOURCE_SHA256}" > image.json
LABEL org.opencontainers.image.title="nest-ssl/nemo" \
      org.opencontainers.image.description="NVIDIA NeMo's NEST trainer with the recorder" \
      org.opencontainers.image.version="${NEMO_VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${GIT_COMMIT}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.base.digest="${BASE_ID}" \
      nest-ssl.source="${SOURCE_SHA256}" \
      nest-ssl.torch="${TORCH_VERSION:-${TORCH}}" \
      nest-ssl.cuda="${CUDA_VERSION}" \
      nest-ssl.nemo="${NEMO_VERSION}"

# Started as root, the entry point turns into whoever owns the mounted /outputs, so that files belong to the caller;
# with --user it is that user from the start.
HEALTHCHECK NONE
STOPSIGNAL SIGINT
ENTRYPOINT ["/app/docker/entrypoint.sh", "python", "scripts/train_nemo.py"]
