# Two images from one file: `gateway` (no torch) and `worker` (torch). Build with --target.
# `python -P -m topology` compiles the kernels of the installed package, which is what runs, not of the copy in this folder.
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 10001 toposerve && mkdir /data && chown toposerve /data
WORKDIR /opt/toposerve
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY client client

# What pages of volumes load for 3D: only the file that the gateway serves goes on.
FROM node:24-slim AS web
WORKDIR /opt/toposerve
COPY web web
RUN web/fetch

FROM base AS gateway
COPY app app
COPY --from=web /opt/toposerve/app/pages/vendor app/pages/vendor
COPY topology topology
COPY migrations migrations
RUN mkdir -p workers models && pip install --constraint constraints.txt ./client '.[s3]' && rm -rf workers models && python -P -m topology
USER toposerve
ENV TOPOSERVE_DATA_DIR=/data TOPOSERVE_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["toposerve", "up"]

FROM base AS worker
COPY app app
COPY topology topology
COPY migrations migrations
COPY models models
COPY workers workers
# The CPU build of torch; set TORCH_INDEX to the CUDA index for machines with a GPU.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --constraint constraints.txt --extra-index-url ${TORCH_INDEX} ./client '.[worker,s3]' && python -P -m topology
USER toposerve
ENV TOPOSERVE_DATA_DIR=/data
# A deploy stop sends SIGTERM: training writes a checkpoint and gives its job back within ten seconds.
STOPSIGNAL SIGTERM
CMD ["toposerve", "worker"]
