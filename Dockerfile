# The program with everything it needs, for a cluster of NVIDIA GPUs:
#
#   docker build -t sparse-generalists .
#   docker run --rm --gpus all --shm-size=8g --ulimit memlock=-1 -v /my/shards:/shards sparse-generalists \
#       deepspeed train.py --help
#
# For the CPU (what `make image-check` builds):
#
#   docker build -t sparse-generalists:cpu --build-arg BUILD_IMAGE=debian:bookworm --build-arg RUNTIME_IMAGE=debian:bookworm-slim \
#       --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu .
#
# The first stage has compilers, the second what runs: no compiler, no CUDA but that of torch's own wheels. It runs as the user
# `trainer` (ARG UID), also with a read-only root file system where /tmp and the run's folder can be written. The command is whatever
# follows the image's name; without one train.py prints its options. docs/kubernetes.md says more.
#
# No version stands here except the bases': pins come from pyproject.toml and constraints.txt through scripts/setup.sh, as on a laptop.
# The CUDA of the bases must be the one that torch's wheel was built with (tests/test_packaging.py compares).
ARG BUILD_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04
ARG RUNTIME_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04

# --- Build ----------------------------------------------------------------------------------------------------
FROM ${BUILD_IMAGE} AS build

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app

# Seconds since 1970. Byte code then names its source by a hash in place of a time, so that the same pins make the same files.
ARG SOURCE_DATE_EPOCH=1767225600
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} PYTHONHASHSEED=0

# Dependencies, in layers of their own: a change of code keeps them.
ENV VENV=/opt/venv
ENV PATH=${VENV}/bin:${PATH}
ARG TORCH_INDEX_URL=
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0+PTX"
ARG MAX_JOBS=8
ARG PIP_NO_CACHE_DIR=1
# Beside what the program needs: the sinks of metrics and what reads and writes tables.
ARG EXTRAS="tensorboard prometheus prepare s3"
COPY pyproject.toml constraints.txt ./
COPY scripts/setup.sh scripts/
# A build sees no GPU, so DeepSpeed is told which kind its operations are for; without CUDA, setup.sh chooses.
RUN if command -v nvcc; then export DS_ACCELERATOR=cuda DS_BUILD_FUSED_ADAM=1; fi \
    && bash scripts/setup.sh

# NVIDIA's apex for kernels=apex; 0 leaves it out. It compiles for most of an hour, and only where there is nvcc.
ARG WITH_APEX=
RUN if [ "${WITH_APEX:-$(command -v nvcc >/dev/null && echo 1)}" = 1 ]; then \
        tag=$(python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["tool"]["sparse-generalists"]["apex"])') \
        && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation --no-deps \
            "apex @ git+https://github.com/NVIDIA/apex.git@${tag}"; \
    fi

# The bill of materials (CycloneDX), by a tool that does not stay.
RUN tool=$(python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["tool"]["sparse-generalists"]["sbom"])') \
    && python -m venv /opt/sbom-tool && /opt/sbom-tool/bin/pip install --quiet "${tool}" \
    && mkdir /opt/sbom \
    && /opt/sbom-tool/bin/cyclonedx-py environment --output-reproducible --of JSON --pyproject pyproject.toml \
        -o /opt/sbom/python.cdx.json "${VENV}/bin/python"

# --- Runtime --------------------------------------------------------------------------------------------------
FROM ${RUNTIME_IMAGE}

# tini is process 1: it hands on signals and takes in what workers leave. pdsh and ssh start ranks on other nodes, numactl binds them
# to cores.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates libgomp1 numactl openssh-client pdsh python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/ldconfig/aux-cache

ARG UID=10001
RUN useradd --no-log-init --create-home --uid ${UID} trainer \
    && install -d -o trainer /app /runs /cache
WORKDIR /app

COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/sbom /usr/share/sbom
RUN dpkg-query -W -f '${Package}\t${Version}\t${Architecture}\n' >/usr/share/sbom/debian.tsv
COPY --chown=trainer . .

# Byte code beside the sources cannot be written on a read-only root, and wandb and others look for a home.
ENV VENV=/opt/venv PATH=/opt/venv/bin:${PATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.title="sparse-generalists" \
      org.opencontainers.image.description="Trains sparse multimodal generalists: Uni-Perceiver-MoE and LIMoE" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.documentation="/app/docs/kubernetes.md" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

USER trainer
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python", "-m", "clusters.kubernetes.ranks", "--check"]
ENTRYPOINT ["tini", "--"]
CMD ["python", "train.py", "--help"]
