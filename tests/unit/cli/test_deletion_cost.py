"""A pod's deletion cost follows what its worker does, over a real TLS connection to an API."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.fixtures.tls import server_context
from worker.cli.deletion_cost import Pod, keep
from worker.observability.http_server import Page, StatusServer
from worker.settings import load_settings

TOKEN = "token-of-the-pod"


@pytest.fixture
def jobs():
    return []


@pytest.fixture
def settings(jobs):
    def page(_):
        return Page(200, "application/json", json.dumps({"jobs": jobs}).encode())

    with StatusServer("127.0.0.1", 0, {"/status": page}) as server:
        yield load_settings(http_port=server.port)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """An API that keeps what it was asked and answers `cluster.status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_PATCH(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked = (self.path, self.headers["Authorization"], self.headers["Content-Type"])
            self.server.asked.append((*asked, json.loads(body)))
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.status = [], 200
    server.socket = server_context(tmp_path, monkeypatch).wrap_socket(
        server.socket, server_side=True
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def pod(tmp_path, cluster):
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "namespace").write_text("lora-worker")
    (tmp_path / "ca.crt").write_bytes((tmp_path / "certificate.pem").read_bytes())
    return Pod("lora-worker-7d9-x2x", "127.0.0.1", cluster.server_address[1], tmp_path)


def test_the_cost_is_written_when_it_changes_and_only_then(cluster, pod, settings, jobs):
    written = keep(pod, settings, None)
    written = keep(pod, settings, written)
    jobs.append({"job_id": "a"})
    assert keep(pod, settings, written) == 100
    costs = [
        asked[-1]["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"]
        for asked in cluster.asked
    ]
    assert costs == ["0", "100"]
    path, authorization, content_type, _ = cluster.asked[0]
    assert path == "/api/v1/namespaces/lora-worker/pods/lora-worker-7d9-x2x"
    assert authorization == f"Bearer {TOKEN}"
    assert content_type == "application/merge-patch+json"


def test_what_the_cluster_refuses_is_tried_again(cluster, pod, settings):
    cluster.status = 403
    assert keep(pod, settings, None) is None
    cluster.status = 200
    assert keep(pod, settings, None) == 0
    assert len(cluster.asked) == 2


def test_a_worker_that_does_not_answer_leaves_the_cost_as_it_is(cluster, pod):
    nobody = load_settings(http_port=9)
    assert keep(pod, nobody, 100) == 100
    assert cluster.asked == []


def test_a_cluster_with_another_certificate_is_not_given_the_token(
    cluster, pod, settings, tmp_path, monkeypatch
):
    other = tmp_path / "other"
    other.mkdir()
    server_context(other, monkeypatch)
    (tmp_path / "ca.crt").write_bytes((other / "certificate.pem").read_bytes())
    assert keep(pod, settings, None) is None
    assert cluster.asked == []
