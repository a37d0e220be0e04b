"""To which trace does this work belong? OpenTelemetry's API where it is installed, else nothing.

The context comes with the job's message (`traceparent` in its AMQP headers) and goes on with every
webhook. Without an SDK the spans are not recorded, and the context is passed on all the same; with
one (`opentelemetry-instrument lora-worker run`) they are exported where its variables say.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    INSTALLED = True
except ImportError:  # the extra `tracing` is not there
    INSTALLED = False

_NAME = "lora-worker"

#: Of the headers of a message, those that are its trace context (W3C Trace Context).
_HEADERS = ("traceparent", "tracestate")

_NANOSECONDS = 1_000_000_000


@contextmanager
def span(name: str, headers: Mapping[str, object], **attributes: str | int) -> Iterator[None]:
    """A span for what is done with a message, below the span that published it.

    Args:
        name: what is done.
        headers: of the message; what is not a trace context in them is ignored.
        attributes: of the span; ids are welcome here.
    """
    if not INSTALLED:
        yield
        return
    carrier = {key: value for key in _HEADERS if isinstance(value := headers.get(key), str)}
    parent = TraceContextTextMapPropagator().extract(carrier)
    with trace.get_tracer(_NAME).start_as_current_span(
        name,
        context=parent,
        kind=trace.SpanKind.CONSUMER,
        attributes={f"lora_worker.{key}": value for key, value in attributes.items()},
    ):
        yield


def stage_ended(stage: str, seconds: float) -> None:
    """A span for a stage that has just ended after so many seconds, below the current one."""
    if not INSTALLED:
        return
    ended = time.time_ns()
    trace.get_tracer(_NAME).start_span(stage, start_time=ended - round(seconds * _NANOSECONDS)).end(
        ended
    )


def outgoing_headers() -> dict[str, str]:
    """The current trace context, for a request or a message; empty if there is none."""
    carrier: dict[str, str] = {}
    if INSTALLED:
        TraceContextTextMapPropagator().inject(carrier)
    return carrier
