# The worker's image. PyTorch's wheels bring CUDA, so the base is a slim Python: a CUDA base would
# carry it twice.
#
#   docker build -t lora-worker .
#   docker build -t lora-worker:cpu --build-arg PIP_ARGUMENTS="<where pip finds a CPU build>" .

ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
# More arguments for pip, such as where a CPU build of torch lies.
ARG PIP_ARGUMENTS=""
# Optional dependencies, such as "[demo]".
ARG EXTRAS=""
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# A layer of its own: gigabytes that change only with the constraints.
RUN pip install --no-cache-dir ${PIP_ARGUMENTS} -c constraints.txt torch
COPY pyproject.toml README.md ./
COPY worker worker
RUN pip install --no-cache-dir ${PIP_ARGUMENTS} -c constraints.txt ".${EXTRAS}"

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="lora-worker" \
      org.opencontainers.image.description="RabbitMQ jobs in, Stable Diffusion LoRA adapters out" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --create-home --home-dir /work worker \
 && mkdir /models && chown worker /models
COPY --from=build /opt/venv /opt/venv
COPY config /app/config
WORKDIR /app
# Everything that is written lies in /work (jobs that run) and /models (the base models' cache), so
# the rest may be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/work \
    HF_HOME=/models \
    WORK_DIR=/work/jobs \
    HTTP_ADDRESS=0.0.0.0 \
    HTTP_PORT=8080 \
    BASE_MODELS_FILE=/app/config/base_models.toml
VOLUME ["/work", "/models"]
USER worker
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s CMD ["lora-worker", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["lora-worker"]
CMD ["run"]
