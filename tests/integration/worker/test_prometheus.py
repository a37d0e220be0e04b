"""A real Prometheus scrapes a running worker and answers the dashboard's questions."""

import json
import re
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pika
import pytest
import yaml

from tests.live_worker import eventually
from worker.demo.rabbitmq_node import RabbitMQNode

CONFIG = Path(__file__).parents[3] / "config"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    """A Prometheus of the test's own, on loopback."""

    def __init__(self, folder, target):
        self.url = f"http://127.0.0.1:{free_port()}"
        alerts = CONFIG / "prometheus" / "alerts.yml"
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: [{alerts}]\n"
            "scrape_configs:\n"
            f"  - {{job_name: lora-worker, static_configs: [{{targets: ['{target}']}}]}}\n"
        )
        self.log = (folder / "prometheus.log").open("wb")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stderr=self.log,
            stdout=self.log,
        )

    def ask(self, path, **query):
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.loads(answer.read())["data"]
        except OSError:
            return None

    def value(self, query):
        """The first value, None if there is none yet."""
        found = (self.ask("query", query=query) or {"result": []})["result"]
        return float(found[0]["value"][1]) if found else None

    def end(self):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


@pytest.fixture
def worker_port():
    return free_port()


@pytest.fixture
def prometheus(tmp_path, worker_port):
    server = Prometheus(tmp_path, f"127.0.0.1:{worker_port}")
    yield server
    server.end()


def dashboard_queries():
    dashboard = json.loads((CONFIG / "grafana" / "lora-worker.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield re.sub(r"\$instance", ".*", target["expr"])


def test_prometheus_scrapes_a_worker_and_answers_every_query(site, prometheus, worker_port):
    with site.worker("-m", "tests.standin_worker", "0.2", HTTP_PORT=str(worker_port)):
        eventually(lambda: prometheus.value("lora_worker_ready") == 1)
        done = site.message(parameters={"max_train_steps": 3})
        site.publish(done)
        site.wait_for_end(done["job_id"])
        site.publish(site.message(parameters={"max_train_steps": 400}))
        eventually(lambda: prometheus.value("lora_worker_training_loss") is not None)
        eventually(lambda: prometheus.value("lora_worker_training_steps_total") > 3)
        assert prometheus.value('lora_worker_jobs_total{outcome="completed"}') == 1
        assert prometheus.value("lora_worker_jobs_running") == 1
        age = prometheus.value("time() - lora_worker_training_last_step_timestamp_seconds")
        assert age < 60
        [target] = prometheus.ask("targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        for query in dashboard_queries():
            assert prometheus.ask("query", query=query) is not None, query
        groups = eventually(lambda: prometheus.ask("rules")["groups"])
        rules = [rule for group in groups for rule in group["rules"]]
        assert len(rules) > 10
        eventually(
            lambda: all(
                rule["health"] == "ok"
                for group in prometheus.ask("rules")["groups"]
                for rule in group["rules"]
            )
        )
        assert [r["name"] for r in rules if r["state"] == "firing"] == []
    eventually(lambda: prometheus.value("up") == 0)


def test_the_broker_says_how_many_jobs_wait_and_are_dead_as_the_alerts_ask(tmp_path):
    scraped = yaml.safe_load((CONFIG / "prometheus" / "prometheus.yml").read_text())
    [job] = [one for one in scraped["scrape_configs"] if one["job_name"] == "rabbitmq"]
    port = free_port()
    config = f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {port}"
    with RabbitMQNode(tmp_path / "node", config=config, plugins=["rabbitmq_prometheus"]) as node:
        connection = pika.BlockingConnection(pika.URLParameters(node.url))
        channel = connection.channel()
        for queue in ("model_training", "model_training.dead", "model_training.events.dead"):
            channel.queue_declare(queue, durable=True)
            for _ in range(3):
                channel.basic_publish("", queue, b"{}")
        query = urllib.parse.urlencode(job["params"], doseq=True)
        address = f"http://127.0.0.1:{port}{job['metrics_path']}?{query}"
        wanted = {
            ("messages_ready", "model_training"),
            ("messages", "model_training.dead"),
            ("messages", "model_training.events.dead"),
        }
        line = re.compile(r'^rabbitmq_detailed_queue_(\w+)\{[^}]*queue="([^"]+)"[^}]*\} 3$', re.M)
        # The broker counts every five seconds.
        eventually(
            lambda: (
                wanted
                <= set(line.findall(urllib.request.urlopen(address, timeout=10).read().decode()))
            )
        )
        connection.close()
