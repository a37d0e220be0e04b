# Two commands on a fresh machine: `make demo` runs the main job, `make test` the tests.
# Each first does all the set-up that is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RABBITMQ_SERVER := /usr/lib/rabbitmq/bin/rabbitmq-server
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help setup rabbitmq demo test test-gpu lint types check generate bench bench-counted \
  bench-gpu bench-startup clean

help: ## Show what can be made.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: $(VENV)/.ready rabbitmq ## Virtual environment, pinned packages, the RabbitMQ server package.

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

rabbitmq: # Only where no other broker is given.
ifndef RABBITMQ_URL
	@[ -x $(RABBITMQ_SERVER) ] || { \
	  echo 'installing rabbitmq-server'; \
	  $(SUDO) apt-get update -qq && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rabbitmq-server >/dev/null; }
endif

demo: setup ## The main job on this machine: a message becomes an adapter and a webhook.
	$(BIN)/lora-worker demo

test: setup ## Every test, on a real broker, a real store and real receivers.
	$(BIN)/python -m pytest

test-gpu: $(VENV)/.ready ## What needs a GPU.
	$(BIN)/python -m pytest -m gpu tests/gpu

lint: $(VENV)/.ready ## Style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready ## Strict types.
	$(BIN)/mypy

check: lint types test ## All three.

generate: $(VENV)/.ready ## Files that come from the models: config/worker.env.example, docs/contract.schema.json, README's table.
	$(BIN)/python -m tests.generated

# DIFFUSERS_SCRIPT=path/to/train_text_to_image_lora.py and DIFFUSERS_PYTHON=its interpreter, if at hand.
bench: $(VENV)/.ready ## Training against diffusers' script. SIZE=tiny|medium|full.
	$(BIN)/python -m benchmarks.training --size $(or $(SIZE),medium)

bench-counted: $(VENV)/.ready ## The work in one step of Stable Diffusion 1.5, counted.
	$(BIN)/python -m benchmarks.counted

bench-gpu: $(VENV)/.ready ## Steps a second on this machine's GPU, full size, random weights.
	$(BIN)/python -m benchmarks.gpu

bench-startup: $(VENV)/.ready ## Start-up time and memory of the supervisor.
	$(BIN)/python -m benchmarks.startup

clean: ## Remove what was made, the virtual environment too.
	rm -rf $(VENV) demo-output build *.egg-info .pytest_cache .mypy_cache .ruff_cache
