"""Dashboard, alerts and runbook speak of metrics, alerts and error codes that exist."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from worker.contract.errors import ErrorCode
from worker.observability import metrics

ROOT = Path(__file__).parents[3]
ALERTS = ROOT / "config" / "prometheus" / "alerts.yml"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((ROOT / "config" / "grafana" / "lora-worker.json").read_text())
RUNBOOK = (ROOT / "docs" / "operations.md").read_text()

#: Made by Prometheus itself and by the broker, not by the worker.
OF_OTHERS = {
    "up",
    "rabbitmq_detailed_queue_messages",
    "rabbitmq_detailed_queue_messages_ready",
}


def names_in(query):
    bare = re.sub(r'"[^"]*"', "", query)
    return set(re.findall(r"\b(?:lora_worker|process|rabbitmq)_\w+\b|\bup\b", bare))


def queries():
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_every_query_names_metrics_that_exist(where, query):
    named = names_in(query)
    assert named, f"{where} names no metric"
    assert named - OF_OTHERS <= metrics.names()


def test_every_metric_of_ours_is_on_the_dashboard_or_in_an_alert():
    asked = set().union(*(names_in(query) for _, query in queries()))
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metrics.names()}
    assert {name for name in ours if name.startswith("lora_worker_")} <= bases


def test_an_unknown_metric_would_be_noticed():
    assert names_in('rate(lora_worker_no_such_total{a="up"}[5m])') == {"lora_worker_no_such_total"}


def test_webhooks_wait_on_their_way_and_on_the_ladder():
    [panel] = [one for one in DASHBOARD["panels"] if one["title"] == "Webhooks waiting"]
    asked = {target["expr"] for target in panel["targets"]}
    waiting = ("events", "events_retry")
    assert asked == {f'max(lora_worker_queue_messages{{queue="{name}"}})' for name in waiting}


def test_no_label_can_hold_an_id():
    for family in metrics.REGISTRY.collect():
        for sample in family.samples:
            assert not set(sample.labels) & {"job_id", "style_id", "owner", "url", "host"}


def promtool(*arguments, **options):
    return subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, check=False, **options
    )


def test_the_rules_are_valid_and_fire_when_they_should():
    checked = promtool("check", "rules", str(ALERTS))
    assert checked.returncode == 0, checked.stderr
    tried = promtool("test", "rules", str(ALERTS.with_name("alerts_test.yml")))
    assert tried.returncode == 0, tried.stdout + tried.stderr
    config = promtool("check", "config", str(ALERTS.with_name("prometheus.yml")))
    assert config.returncode == 0, config.stderr


def test_the_names_follow_the_conventions_as_prometheus_own_linter_sees_them():
    linted = promtool("check", "metrics", input=metrics.exposition().decode())
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, "", "")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_has_its_section_in_the_runbook(rule):
    assert f"\n### {rule['alert']}\n" in RUNBOOK
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    assert rule["labels"]["severity"] in ("page", "ticket")


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_has_its_row_in_the_runbook(code):
    assert f"\n| `{code.value}` |" in RUNBOOK
