"""The trace of whoever published a job reaches whoever hears of it."""

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_every_webhook_of_a_job_belongs_to_the_trace_of_its_message(site):
    message = site.message()
    site.publish(message, headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    with site.worker():
        site.wait_for_end(message["job_id"])
    journal = site.journal(message["job_id"])
    assert {entry.event for entry in journal} == {"progress", "complete"}
    assert {entry.headers["traceparent"].split("-")[1] for entry in journal} == {TRACE}


def test_a_message_without_a_trace_is_none_to_its_receiver(site):
    message = site.message()
    site.publish(message)
    with site.worker():
        end = site.wait_for_end(message["job_id"])
    assert "traceparent" not in end.headers
