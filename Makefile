# Two commands on a fresh machine: `make demo` runs the main job, `make test` the tests.
# Each first does all the set-up that is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RABBITMQ_SERVER := /usr/lib/rabbitmq/bin/rabbitmq-server
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help setup rabbitmq test-tools demo test test-gpu faults faults-full soak compose-check lint types check generate \
  fuzz audit sbom security-tools \
  bench bench-counted bench-gpu bench-startup bench-scaling bench-queue bench-consumers clean

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

# Headless browser for the pages; Prometheus to check its rules and to scrape a worker. Tests that
# render the Kubernetes manifests want a kubectl of 1.27 or newer, and are skipped without.
test-tools:
	@which chromium promtool >/dev/null || { \
	  echo 'installing chromium and prometheus'; \
	  $(SUDO) apt-get update -qq && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends chromium prometheus >/dev/null; }
	@which kubectl >/dev/null || { \
	  echo 'installing kubernetes-client'; \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends kubernetes-client >/dev/null; } || true

test: setup test-tools ## Every test, on a real broker, a real store, real receivers and a real browser.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

faults: setup ## Every fault at every point of a job, then the journals; BROKER=URL for another broker.
	$(BIN)/python -m tests.faults $(if $(BROKER),--broker $(BROKER)) $(CASES)

faults-full: setup ## The same with the real trainer, which takes its time to start.
	$(BIN)/python -m tests.faults --real-trainer $(CASES)

compose-check: $(VENV)/.ready ## Twenty jobs through docker-compose.yml, one container killed and one paused; needs Docker.
	$(BIN)/python -m tests.compose $(COMPOSE_CHECK)

soak: setup ## JOBS=1000 through five workers with a random fault every few seconds.
	$(BIN)/python -m tests.faults.soak --jobs $(or $(JOBS),1000)

test-gpu: $(VENV)/.ready ## What needs a GPU.
	$(BIN)/python -m pytest -m gpu tests/gpu

security-tools: $(VENV)/.ready
	@$(BIN)/python -c 'import atheris, pip_audit, cyclonedx_py' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[security]'

fuzz: security-tools ## 100,000 messages and 5,000 pictures made to do harm; GUIDED=0 without atheris.
	$(BIN)/python -m tests.fuzz.messages --count 100000
	$(BIN)/python -m tests.fuzz.images --count 5000
ifneq ($(GUIDED),0)
	$(BIN)/python -m tests.fuzz.messages --guided --count 100000
endif

# --strict: what could not be looked up counts as a finding; a mirror may know nothing.
audit: security-tools ## Known vulnerabilities of the pinned packages; asks the package index.
	$(BIN)/python -m pip_audit --strict --disable-pip --no-deps -r constraints.txt

sbom: security-tools ## build/sbom.cdx.json: all packages of this environment (CycloneDX).
	@mkdir -p build
	$(BIN)/python -m cyclonedx_py environment --pyproject pyproject.toml --output-reproducible \
	  --of JSON -o build/sbom.cdx.json $(BIN)/python

lint: $(VENV)/.ready ## Style and formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready ## Strict types.
	$(BIN)/mypy

check: lint types test ## All three.

# What the tests do with its JSON Schema, by AsyncAPI's own parser (54 MB from npm, kept in .tools).
asyncapi: .tools/node_modules/@asyncapi/parser ## The AsyncAPI document by AsyncAPI's own parser; needs npm.
	NODE_PATH=.tools/node_modules node tests/asyncapi_parser.cjs

.tools/node_modules/@asyncapi/parser:
	npm install --silent --no-audit --no-fund --prefix .tools @asyncapi/parser@3.6.6

.PHONY: pictures asyncapi
pictures: setup test-tools ## The pictures of the documentation, of a real run.
	$(BIN)/python -m tests.pictures

generate: $(VENV)/.ready ## Files that come from the models: config/worker.env.example, docs/contract.*.json, the settings' table.
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

bench-scaling: $(VENV)/.ready rabbitmq ## Jobs a second and what the parts around a worker carry: 50 workers, 5,000 jobs.
	$(BIN)/python -m benchmarks.scaling --workers 50 --jobs 5000

bench-queue: $(VENV)/.ready rabbitmq ## 24 small jobs through one worker: one after another, and eight at a time.
	$(BIN)/python -m benchmarks.packed_queue --size $(or $(SIZE),tiny)

bench-consumers: $(VENV)/.ready rabbitmq ## What it costs a queue that ten thousands listen to it.
	$(BIN)/python -m benchmarks.consumer_churn

clean: ## Remove what was made, the virtual environment too.
	rm -rf $(VENV) .tools demo-output build *.egg-info .pytest_cache .mypy_cache .ruff_cache
