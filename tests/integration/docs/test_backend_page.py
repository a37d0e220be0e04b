"""Every snippet of the page for backend engineers is run, in its order, as it stands there."""

import contextlib
import io
import json
import re

import pytest

from tests.docs.pages import TOP, blocks, read
from worker.contract import examples
from worker.contract.errors import ErrorCode
from worker.contract.events import ENDPOINTS, idempotency_key
from worker.contract.job import parse_message
from worker.demo.receiver import Receiver, Reply
from worker.webhooks.allow_list import WebhookAllowList
from worker.webhooks.client import WebhookClient

PAGE = "docs/backend.md"
TOKEN, SECRET = "a-token", "whsec_" + "A" * 32

#: A block that begins so is part of that file, which has tests of its own.
EXCERPT = re.compile(r"# (examples/\S+)\n")


@pytest.fixture(scope="module")
def ran(private_rabbitmq_node):
    """The snippets' names after all of them, what they printed, and the broker's address."""
    vhost = "backend-page"
    private_rabbitmq_node.ctl("add_vhost", vhost)
    private_rabbitmq_node.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    url = private_rabbitmq_node.vhost_url(vhost)
    names, printed = {"__name__": "backend_page"}, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("RABBITMQ_URL", url)
        patch.setenv("INTERNAL_API_TOKEN", TOKEN)
        patch.setenv("WEBHOOK_SIGNING_SECRET", SECRET)
        for block in blocks(PAGE, "python"):
            if not EXCERPT.match(block.text):
                exec(compile(block.text, str(block), "exec"), names)
        yield names, printed.getvalue(), url
    names["jobs"].close()


def published(url):
    from tests.integration.broker.conftest import Backend

    return [parse_message(body) for body in Backend(url).drain("model_training")]


def test_what_the_snippets_publish_are_jobs(ran):
    names, _, url = ran
    first, again, once_more, plain = (message.job for message in published(url))
    assert first.job_id == names["job_id"]
    assert (first.style_id, first.images[1].caption) == (10, "a hill, in ink")
    assert first.parameters.num_train_epochs == 100
    assert again == once_more
    assert again.job_id == names["chosen_id"]
    assert (plain.style_id, plain.webhook_url) == (12, "https://api.example.com")


def test_what_a_refused_job_prints_is_what_the_page_says(ran):
    _, printed, _ = ran
    (shown,) = blocks(PAGE, "text")
    assert shown.text in printed


@pytest.mark.parametrize("event", examples.EVENTS)
def test_the_view_takes_what_the_real_client_sends(ran, event):
    """Over HTTP, by the worker's own client; the library of the specification agrees."""
    names, _, _ = ran
    body = examples.EVENTS[event]

    def respond(request):
        assert names["verified"](request.headers, request.body) == json.loads(body.body())
        return Reply(status=names["webhook"](request.headers, request.body))

    with Receiver(respond=respond) as receiver:
        allowed = WebhookAllowList([receiver.host], require_https=False)
        client = WebhookClient(TOKEN, allow_list=allowed, signing_secret=SECRET)
        stranger = WebhookClient("other", allow_list=allowed, signing_secret=SECRET)
        key = idempotency_key(body.job_id, event, 7 if event == "progress" else None)
        method, path = ENDPOINTS[event]
        assert client.send(method, receiver.url, path, body.body(), key).status == 200
        assert stranger.send(method, receiver.url, path, body.body(), key).status == 401


def test_excerpts_stand_in_the_examples_as_they_are_shown():
    excerpts = [b for b in blocks(PAGE, "python") if EXCERPT.match(b.text)]
    assert len(excerpts) >= 3
    for block in excerpts:
        file = EXCERPT.match(block.text)[1]
        assert block.text.partition("\n")[2] in (TOP / file).read_text(), block


def test_every_error_code_has_its_row():
    rows = re.findall(r"^\| `([A-Z_]+)` \|", read(PAGE), re.M)
    assert set(rows) == {code.value for code in ErrorCode}
    assert len(rows) == len(set(rows))


def test_the_types_of_refusal_are_the_ones_that_there_are():
    from worker.client import receiving

    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (\d+) \|$", read(PAGE), re.M))
    kinds = receiving.WebhookRejected.__subclasses__()
    assert rows == {kind.__name__: str(kind.status) for kind in kinds}
