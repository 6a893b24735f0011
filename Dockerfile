# The program with everything it needs, for a cluster of NVIDIA GPUs:
#
#   docker build -t sparse-generalists .
#   docker run --rm --gpus all --ipc=host --ulimit memlock=-1 -v /my/shards:/shards sparse-generalists \
#       deepspeed train.py --help
#
# It runs as the user `trainer` (ARG UID), in /app, which that user may write to. There is no entry point of
# its own: the command is whatever follows the image's name, and without one train.py prints its options.
#
# For the CPU (what `make image-check` builds):
#
#   docker build --build-arg BASE_IMAGE=debian:bookworm --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu .
#
# No version stands here except the base's: pins come from pyproject.toml and constraints.txt through
# scripts/setup.sh, as on a laptop. The base's CUDA must be the one that torch's wheel was built with.
ARG BASE_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04
FROM ${BASE_IMAGE}

# pdsh and ssh start ranks on other nodes, numactl binds them to cores.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ git numactl openssh-client pdsh python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ARG UID=10001
RUN useradd --create-home --uid ${UID} trainer \
    && install -d -o trainer /app
WORKDIR /app

# Dependencies, in layers of their own: a change of code keeps them.
ENV VENV=/opt/venv
ENV PATH=${VENV}/bin:${PATH}
ARG TORCH_INDEX_URL=
ARG TORCH_CUDA_ARCH_LIST="8.0;9.0;10.0+PTX"
ARG MAX_JOBS=8
ARG PIP_NO_CACHE_DIR=1
COPY pyproject.toml constraints.txt ./
COPY scripts/setup.sh scripts/
# A build sees no GPU, so DeepSpeed is told which kind its operations are for; without CUDA, setup.sh chooses.
RUN if command -v nvcc; then export DS_ACCELERATOR=cuda DS_BUILD_FUSED_ADAM=1; fi \
    && EXTRAS= bash scripts/setup.sh

# NVIDIA's apex for kernels=apex; 0 leaves it out. It compiles for most of an hour, and only where there is nvcc.
ARG WITH_APEX=
RUN if [ "${WITH_APEX:-$(command -v nvcc >/dev/null && echo 1)}" = 1 ]; then \
        tag=$(python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["tool"]["sparse-generalists"]["apex"])') \
        && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation --no-deps \
            "apex @ git+https://github.com/NVIDIA/apex.git@${tag}"; \
    fi

COPY --chown=trainer . .
USER trainer
CMD ["python", "train.py", "--help"]
