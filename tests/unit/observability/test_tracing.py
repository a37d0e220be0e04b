"""One trace from the message to the webhook."""

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from worker.observability import tracing
from worker.webhooks.allow_list import WebhookAllowList
from worker.webhooks.client import WebhookClient

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-other": 1}


@pytest.fixture(scope="module")
def exporter():
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    return kept


@pytest.fixture
def spans(exporter):
    exporter.clear()
    return lambda: {span.name: span for span in exporter.get_finished_spans()}


def test_stages_lie_below_the_job_and_the_job_below_who_published_it(spans):
    with tracing.span("job", HEADERS, job_id="j", style_id=7):
        tracing.stage_ended("training", 2.5)
    job, training = spans()["job"], spans()["training"]
    assert f"{job.context.trace_id:032x}" == TRACE
    assert f"{job.parent.span_id:016x}" == SPAN
    assert training.parent.span_id == job.context.span_id
    assert training.end_time - training.start_time == 2_500_000_000
    assert job.attributes == {"lora_worker.job_id": "j", "lora_worker.style_id": 7}


def test_a_webhook_carries_the_trace_on(spans, receiver):
    client = WebhookClient(None, allow_list=WebhookAllowList([receiver.host], False))
    with tracing.span("job", HEADERS):
        path = "/api/webhooks/training/complete"
        assert client.send("POST", receiver.url, path, b"{}", "k").kind == "delivered"
    version, trace_id, parent, flags = receiver.journal[0].headers["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "01")
    assert parent == f"{spans()['job'].context.span_id:016x}"


@pytest.mark.parametrize(
    "headers", [{}, {"traceparent": "nonsense"}, {"traceparent": 5}, {"traceparent": "00-0-0-0"}]
)
def test_a_message_without_a_context_begins_a_trace_of_its_own(spans, headers):
    with tracing.span("job", headers):
        assert tracing.outgoing_headers()["traceparent"].startswith("00-")
    assert spans()["job"].parent is None


def test_outside_of_any_work_nothing_is_carried():
    assert tracing.outgoing_headers() == {}


def test_without_the_extra_everything_goes_on_untraced():
    program = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "from worker.observability import tracing\n"
        f"with tracing.span('job', {HEADERS!r}):\n"
        "    tracing.stage_ended('training', 1.0)\n"
        "    assert tracing.outgoing_headers() == {}\n"
        "print(tracing.INSTALLED)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "False\n"
