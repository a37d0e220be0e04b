"""What is counted and measured? Every metric of the worker, defined here and nowhere else.

Base units, totals end in `_total`, and no label holds an id: a label's values are few and known.
`slot` is a place for one job, counted from 0. What is to be an age is given as the Unix time at
which it happened, and there only while it means something: `time() - metric` is the age.
"""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from worker import __version__
from worker.contract.errors import ErrorCode

#: Media type of `exposition()`.
CONTENT_TYPE = CONTENT_TYPE_LATEST

#: Where all of them live.
REGISTRY = CollectorRegistry()

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0

#: Upper bounds of what takes from a second to hours, seconds.
_LONG = (
    *(1.0, 5.0, 15.0, 30.0, _MINUTE, 5 * _MINUTE, 15 * _MINUTE, 30 * _MINUTE),
    *(_HOUR, 2 * _HOUR, 4 * _HOUR, 8 * _HOUR),
)

#: Upper bounds of one request, seconds.
_SHORT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0)

#: Upper bounds of how late a terminal event may arrive, seconds.
_LATE = (0.1, 0.5, 1.0, 5.0, 30.0, _MINUTE, 10 * _MINUTE, _HOUR, 6 * _HOUR, _DAY, 3 * _DAY)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"lora_worker_{name}", text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"lora_worker_{name}", text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(f"lora_worker_{name}", text, labels, registry=REGISTRY, buckets=bounds)


# --- the worker itself
BUILD_INFO = _gauge("build_info", "Always 1; the version is in the label.", "version")
BUILD_INFO.labels(__version__).set(1)
READY = _gauge("ready", "1 if the worker takes jobs: broker, store and trainer are there.")
DRAINING = _gauge("draining", "1 once the worker was told to stop.")
SLOTS = _gauge("slots", "Jobs that this worker can train at a time.")
JOBS_RUNNING = _gauge("jobs_running", "Jobs that this worker works on now.")
JOBS_TRAINING = _gauge("jobs_training", "Jobs that trainers have now; the others come or go.")
TRAINERS_READY = _gauge("trainers_ready", "Trainer processes that are up.")
TRAINERS_REPLACED = _counter(
    "trainers_replaced_total", "Trainers replaced; clean: their jobs were used up.", "clean"
)

# --- jobs
DELIVERIES = _counter("deliveries_total", "Job messages by what was decided about them.", "action")
JOBS = _counter(
    "jobs_total", "Jobs ended here, by outcome and, if they failed, by code.", "outcome", "code"
)
ATTEMPTS_FAILED = _counter(
    "attempts_failed_total", "Attempts that ended with an error, by its code.", "code"
)
INTERRUPTIONS = _counter(
    "jobs_interrupted_total", "Jobs given back with a checkpoint by a worker that was told to stop."
)
PARKS = _counter("parks_total", "Messages moved to the parking queue.")
QUEUE_WAIT = _histogram(
    "queue_wait_seconds", "From a job's being sent to its first being taken up.", _LONG
)
STAGE_DURATION = _histogram("stage_duration_seconds", "How long a stage took.", _LONG, "stage")

# --- training
STEPS = _counter("training_steps_total", "Optimizer steps done.")
SAMPLES = _counter("training_samples_total", "Pictures that optimizer steps were computed from.")
STEP_DURATION = _gauge("training_step_duration_seconds", "Time of a step, as last told.", "slot")
LOSS = _gauge("training_loss", "Mean training loss, as last told.", "slot")
PROGRESS = _gauge("training_progress_ratio", "Steps done of all steps, 0 to 1.", "slot")
LAST_STEP = _gauge(
    "training_last_step_timestamp_seconds", "When the last step was told; while one trains.", "slot"
)
LAST_CHECKPOINT = _gauge(
    "training_last_checkpoint_timestamp_seconds",
    "When the last checkpoint was stored; from the first one of a training on.",
    "slot",
)
TRAINER_MEMORY_PEAK = _gauge(
    "trainer_gpu_memory_peak_bytes",
    "Most GPU memory so far of the job, or of those that share its trainer.",
    "slot",
)

# --- the GPUs, as the driver tells
GPU_MEMORY_USED = _gauge("gpu_memory_used_bytes", "GPU memory in use, by anybody.", "gpu")
GPU_MEMORY_TOTAL = _gauge("gpu_memory_size_bytes", "GPU memory in all.", "gpu")
GPU_UTILIZATION = _gauge("gpu_utilization_ratio", "Part of the time that the GPU works.", "gpu")

# --- leases, broker, store
LEASE_RENEWALS = _counter(
    "lease_renewals_total", "Renewals of leases: renewed, failed (tried again), lost.", "result"
)
BROKER_CONNECTED = _gauge("broker_connected", "1 while there is a session.", "connection")
BROKER_LOSSES = _counter("broker_losses_total", "Connections that were lost.", "connection")
CHANNEL_LOSSES = _counter("broker_channel_losses_total", "Channels that were lost.", "connection")
STORE_REACHABLE = _gauge("store_reachable", "1 if the store answered when it was last asked.")
CHECKPOINTS = _counter("checkpoints_total", "Checkpoints: stored, failed.", "result")

# --- webhooks
WEBHOOK_DURATION = _histogram(
    "webhook_duration_seconds", "One request to a receiver.", _SHORT, "event", "answer"
)
WEBHOOKS_GIVEN_UP = _counter("webhooks_given_up_total", "Terminal events that no receiver took.")
OUTBOX_AGE = _histogram(
    "outbox_age_seconds",
    "Age of a terminal event at each of its tries: its delay, where it was delivered.",
    _LATE,
    "answer",
)
QUEUE_MESSAGES = _gauge(
    "queue_messages",
    "Messages ready in a queue: events, events_retry (all of its ladder), events_dead, dead.",
    "queue",
)

# A series that appears with its first event has no increase; these are there from the start.
for _code in ErrorCode:
    ATTEMPTS_FAILED.labels(_code.value)
    JOBS.labels("canceled" if _code is ErrorCode.CANCELED else "failed", _code.value)
for _answer in ("delivered", "retry", "refused"):
    OUTBOX_AGE.labels(_answer)
for _result in ("renewed", "failed", "lost"):
    LEASE_RENEWALS.labels(_result)
for _result in ("stored", "failed"):
    CHECKPOINTS.labels(_result)
JOBS.labels("completed", "")

# The process' own memory, CPU time and files, under the names that all programs give them.
ProcessCollector(registry=REGISTRY)


def exposition() -> bytes:
    """All of them in Prometheus' text format."""
    return generate_latest(REGISTRY)


def value_of(metric: Counter, **labels: str) -> list[float]:
    """The values of a counter's series that have these labels."""
    return [
        sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and labels.items() <= sample.labels.items()
    ]


def names() -> set[str]:
    """Every series name that a query may ask for, histograms' `_bucket`, `_sum`, `_count` too."""
    found: set[str] = set()
    for family in REGISTRY.collect():
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_sum", "_count"),
        }.get(family.type, ("",))
        found |= {family.name + suffix for suffix in suffixes}
    return found
