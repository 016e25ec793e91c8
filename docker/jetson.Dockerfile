# syntax=docker/dockerfile:1
# mmad-fast on a Jetson: ONNX Runtime on the CPU, the TensorRT of JetPack on the GPU, no torch.
# Not built by this project; docs/docker.md says what was tried, how to build and how to run it.

# JetPack 6 by default. JetPack 7.2 (L4T r39.2) has no l4t image: its packages go into plain Ubuntu with
#   BASE=ubuntu:24.04 L4T=r39.2 TENSORRT=10.16.2.10-1+cuda13.2 CUDA_BINDINGS=13
ARG BASE=nvcr.io/nvidia/l4t-base:r36.2.0

FROM ${BASE} AS build
# Ubuntu drops the versions that it replaces, so a pinned one would soon be gone.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml CMakeLists.txt constraints.txt README.md LICENSE ./
COPY csrc csrc
COPY mmad_fast mmad_fast
ENV MMAD_FAST_CUDA=OFF
# The major version of the CUDA that the driver of this JetPack knows.
ARG CUDA_BINDINGS=12.9
# TensorRT comes from apt, outside of the environment, which must see it but not lean on what else
# the system has. `export` builds the engines: TensorRT builds for the GPU at hand only.
RUN python3 -m venv --system-site-packages /opt/mmad-fast \
    && /opt/mmad-fast/bin/pip install --no-cache-dir --ignore-installed \
        --constraint constraints.txt ".[export]" "cuda-bindings==${CUDA_BINDINGS}.*" \
    && /opt/mmad-fast/bin/pip uninstall --yes setuptools pip

FROM ${BASE}
ARG L4T=r36.4
ARG TENSORRT=10.3.0.30-1+cuda12.5
ADD --chmod=644 https://repo.download.nvidia.com/jetson/jetson-ota-public.asc \
    /etc/apt/trusted.gpg.d/jetson-ota-public.asc
# The l4t image has a list of NVIDIA's packages already, of an older release: it is replaced.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && echo "deb https://repo.download.nvidia.com/jetson/common ${L4T} main" \
        >/etc/apt/sources.list.d/nvidia-l4t-apt-source.list \
    && apt-get update \
    && apt-get install --yes --no-install-recommends \
        "libnvinfer10=${TENSORRT}" "libnvinfer-plugin10=${TENSORRT}" \
        "libnvonnxparsers10=${TENSORRT}" "python3-libnvinfer=${TENSORRT}" \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/mmad-fast /opt/mmad-fast
COPY examples /opt/mmad-fast/examples
# The driver comes from the host through the NVIDIA Container Toolkit.
ENV PATH=/opt/mmad-fast/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --create-home --uid 10001 mmad
USER 10001
WORKDIR /home/mmad
ENTRYPOINT ["mmad-fast"]
CMD ["doctor"]
