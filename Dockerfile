# The worker's image. PyTorch's wheels bring CUDA, so the base is a slim Python: a CUDA base would
# carry it twice.
#
#   docker build -t lora-worker .
#   docker build -t lora-worker:cpu --build-arg TORCH_INDEX="<index of PyTorch's CPU wheels>" .
#
# docs/deployment.md has the arguments, how to run it read-only, and what is in which layer.

ARG PYTHON_IMAGE=python:3.11-slim

# Gigabytes that change only with the constraints: the finished image has them in a layer of their own.
FROM ${PYTHON_IMAGE} AS dependencies
# One more package index, where torch comes from elsewhere: CPU wheels, another CUDA.
ARG TORCH_INDEX=""
# Optional dependencies, such as "[demo,tracing]".
ARG EXTRAS=""
# The base's pip installs into an environment that has none itself, and that will find the worker.
RUN python -m venv --without-pip /opt/venv \
 && echo /opt/lora-worker >"$(/opt/venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/lora-worker.pth"
WORKDIR /src
COPY constraints.txt ./
RUN pip --python /opt/venv/bin/python install --no-cache-dir -c constraints.txt \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml LICENSE ./
COPY worker/__init__.py worker/
# A worker without code, for what it depends on.
RUN touch README.md \
 && pip --python /opt/venv/bin/python install --no-cache-dir -c constraints.txt \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".${EXTRAS}" \
 && pip --python /opt/venv/bin/python uninstall --yes lora-worker

FROM dependencies AS application
COPY worker worker
RUN pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --target /opt/lora-worker .

FROM ${PYTHON_IMAGE}
# More of the system's packages: `gcc libc6-dev` for STEP_LAUNCH=compile.
ARG SYSTEM_PACKAGES=""
# tini is process 1: it passes signals on, and buries what a killed trainer leaves behind.
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
 && apt-get install -y --no-install-recommends tini ${SYSTEM_PACKAGES} \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* \
 && useradd --uid 10001 --no-create-home --home-dir /work --shell /usr/sbin/nologin worker \
 && install -d -o worker -g worker /work /models
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=application /opt/lora-worker /opt/lora-worker
COPY config/base_models.toml /app/config/
WORKDIR /app
# Everything that is written lies in /work (jobs that run), /models (the base models' cache) and /tmp,
# so the rest may be read-only. Compiled kernels lie in /work, since docker's tmpfs runs no code.
# GKE puts NVIDIA's driver below /usr/local/nvidia, and tells nobody.
ENV PATH=/opt/lora-worker/bin:/opt/venv/bin:$PATH:/usr/local/nvidia/bin \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/work \
    HF_HOME=/models \
    TORCHINDUCTOR_CACHE_DIR=/work/torchinductor \
    WORK_DIR=/work/jobs \
    HTTP_ADDRESS=0.0.0.0 \
    HTTP_PORT=8080 \
    BASE_MODELS_FILE=/app/config/base_models.toml
VOLUME ["/work", "/models"]
# As a number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s CMD ["lora-worker", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "-s", "--", "lora-worker"]
CMD ["run"]
# Last, because they change with every build.
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lora-worker" \
      org.opencontainers.image.description="RabbitMQ jobs in, Stable Diffusion LoRA adapters out" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
