# The region detector in a container.
#   docker build --tag region-detector .                                     for CPUs
#   docker build --tag region-detector:cuda --build-arg DEVICE=cuda .        for NVIDIA GPUs
#   mkdir -p runs                                                            else Docker makes it as root
#   docker run --rm --volume "$PWD/runs:/app/runs" region-detector          runs the quick start
#   docker run --rm --gpus all --volume "$PWD/runs:/app/runs" region-detector:cuda
#   docker run --rm --volume "$PWD:/app" region-detector demo --checkpoint runs/mine/checkpoints/best.pt \
#       photos/ --output drawn
ARG DEVICE=cpu

# Builds the wheel; the compilers stay in this stage.
FROM python:3.13-slim-bookworm AS build-cpu
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir build "setuptools>=77" wheel ninja
RUN pip install --no-cache-dir "torch>=2.11" --index-url https://download.pytorch.org/whl/cpu
ENV DETECTOR_CUDA=0

# torch from PyPI is the one with CUDA. NVIDIA's compiler comes from PyPI, too, in torch's version.
FROM python:3.13-slim-bookworm AS build-cuda
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir build "setuptools>=77" wheel ninja
RUN pip install --no-cache-dir "torch>=2.11"
COPY setup.py /tmp/setup.py
RUN pip install --no-cache-dir \
    "$(python -c 'import runpy; print(runpy.run_path("/tmp/setup.py")["compiler_packages"]())')"
ENV DETECTOR_CUDA=13

# The stage of the chosen device. hadolint does not know its name (DL3006).
# hadolint ignore=DL3006
FROM build-${DEVICE} AS build
COPY . /source
WORKDIR /source
RUN python -m build --no-isolation --wheel --outdir /wheels

FROM python:3.13-slim-bookworm AS base-cpu
RUN pip install --no-cache-dir "torch>=2.11" "torchvision>=0.26" --index-url https://download.pytorch.org/whl/cpu

FROM python:3.13-slim-bookworm AS base-cuda

# hadolint ignore=DL3006
FROM base-${DEVICE}
# OpenCV needs these two libraries.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl && rm -r /wheels \
    && useradd --create-home detector && mkdir --mode=1777 /app
# Any user may write to /app, since the quick start writes there and --user may name another one.
USER detector
WORKDIR /app
ENTRYPOINT ["region-detector"]
CMD ["train", "--config", "quickstart", "--output", "runs/quickstart", "--overwrite"]
