# syntax=docker/dockerfile:1
# mmad-fast on an x86-64 machine with an NVIDIA RTX GPU: ONNX Runtime on the CPU, TensorRT-RTX on the GPU, no torch.
# Not built by this project; docs/docker.md says what was tried, how to build and how to run it.

# The full image has a C++ compiler, so nothing comes from apt. The slim one runs the result.
FROM python:3.11.14-bookworm AS build
WORKDIR /src
COPY pyproject.toml CMakeLists.txt constraints.txt README.md LICENSE ./
COPY csrc csrc
COPY mmad_fast mmad_fast
# The compiled kernels are those of the CPU; the GPU runs the networks, as TensorRT-RTX engines.
ENV MMAD_FAST_CUDA=OFF
RUN python -m venv --without-pip /opt/mmad-fast \
    && pip --python /opt/mmad-fast/bin/python install --no-cache-dir --constraint constraints.txt \
        ".[tensorrt-rtx]"

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/mmad-fast /opt/mmad-fast
COPY examples /opt/mmad-fast/examples
# The driver, libcuda.so.1 among it, comes from the host through the NVIDIA Container Toolkit.
ENV PATH=/opt/mmad-fast/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --create-home --uid 10001 mmad
USER 10001
WORKDIR /home/mmad
ENTRYPOINT ["mmad-fast"]
CMD ["doctor"]
