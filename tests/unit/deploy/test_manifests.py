"""The manifests render, are valid, ask for nothing they should not, and agree with the worker."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.unit.deploy.rendered import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    needs_kustomize,
    one,
    pod_template,
    render,
    rendered,
    settings_of,
)
from worker.broker.topology import Topology
from worker.cli import app
from worker.settings import Settings, load_settings

WORKERS = ("overlays/warm-pool", "overlays/one-shot")
SCHEMAS = Path(__file__).parent / "schemas"

#: The oldest with sidecars as they are used here, and the newest that the validator knows.
VERSIONS = ("1.29", kubernetes_validate.latest_version())

#: Names that the AWS SDK reads, and those of the pod itself.
OF_OTHERS = {"AWS_REGION", "POD_NAME"}

SETTINGS = {name.upper() for name in Settings.model_fields}


def closed(schema):
    """The schema, with nothing allowed that it does not name, as `kubectl apply` is strict."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema:
        made["properties"] = {key: closed(value) for key, value in schema["properties"].items()}
        made.setdefault("additionalProperties", False)
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if isinstance(made.get("pattern"), str):
        made["pattern"] = made["pattern"].replace("^(?i)", "(?i)^")  # Go's way to write it
    return made


def schema_of(resource):
    group, version = resource["apiVersion"].split("/")
    schema = closed(
        json.loads((SCHEMAS / f"{group}_{version}_{resource['kind']}.json").read_text())
    )
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def validate(resource):
    if (SCHEMAS / f"{resource['apiVersion'].replace('/', '_')}_{resource['kind']}.json").exists():
        jsonschema.validate(resource, schema_of(resource))
        return
    for version in VERSIONS:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_is_valid_to_the_letter(overlay):
    resources = rendered(overlay)
    assert len(resources) > 5
    for resource in resources:
        validate(resource)
        if resource["kind"] == "ScaledJob":
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
            validate(job | {"spec": resource["spec"]["jobTargetRef"]})


@pytest.mark.parametrize(
    ("overlay", "kind", "change"),
    [
        ("overlays/warm-pool", "Deployment", lambda r: r["spec"].update(replica=2)),
        ("overlays/warm-pool", "ScaledObject", lambda r: r["spec"].update(minReplicas=1)),
        ("overlays/one-shot", "ScaledJob", lambda r: r["spec"].update(pollInterval=1)),
        ("overlays/one-shot", "PodMonitor", lambda r: r["spec"].update(endpoints=[])),
        ("overlays/one-shot", "TriggerAuthentication", lambda r: r["spec"].update(secret=[])),
    ],
)
def test_a_slip_would_be_noticed(overlay, kind, change):
    [resource] = [r for r in rendered(overlay) if r["kind"] == kind]
    broken = copy.deepcopy(resource)
    change(broken)
    with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError)):
        validate(broken)


def test_on_spot_machines_only_where_pods_may_run_changes(tmp_path):
    needs_kustomize()
    overlay = KUBERNETES / "overlays" / "warm-pool" / "kustomization.yaml"
    text = overlay.read_text()
    assert "# - ../../components/spot" in text
    copied = tmp_path / "kubernetes"
    for file in KUBERNETES.rglob("*"):
        if file.is_file():
            target = copied / file.relative_to(KUBERNETES)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(file.read_text())
    (copied / "overlays" / "warm-pool" / "kustomization.yaml").write_text(
        text.replace("# - ../../components/spot", "- ../../components/spot")
    )
    changed = {(r["kind"], r["metadata"]["name"]): r for r in render(copied / "overlays/warm-pool")}
    before = {(r["kind"], r["metadata"]["name"]): r for r in rendered("overlays/warm-pool")}
    assert [key for key in before if before[key] != changed[key]] == [("Deployment", "lora-worker")]
    deployment = changed["Deployment", "lora-worker"]
    validate(deployment)
    spec = deployment["spec"]["template"]["spec"]
    usual = pod_template("overlays/warm-pool")["spec"]
    assert {key for key in spec if spec[key] != usual.get(key)} == {"affinity", "tolerations"}
    assert usual["tolerations"][0] in spec["tolerations"]


# --- security


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_what_the_restricted_level_wants_and_read_only(overlay):
    spec = pod_template(overlay)["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
    labels = one(overlay, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_only_the_sidecar_has_a_token_of_the_cluster():
    spec = pod_template("overlays/warm-pool")["spec"]
    [volume] = [v["name"] for v in spec["volumes"] if "projected" in v]
    mounting = [
        container["name"]
        for container in [*spec["containers"], *spec["initContainers"]]
        if any(mount["name"] == volume for mount in container["volumeMounts"])
    ]
    assert mounting == ["deletion-cost"]
    assert one("overlays/warm-pool", "Role", "lora-worker-deletion-cost")["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}
    ]
    assert not [r for r in rendered("overlays/one-shot") if r["kind"] == "Role"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_lies_in_the_manifests(overlay):
    assert not [r for r in rendered(overlay) if r["kind"] == "Secret"]
    secret = {name for name, field in Settings.model_fields.items() if "Secret" in str(field)}
    for resource in rendered(overlay):
        if resource["kind"] == "ConfigMap":
            assert not {name.lower() for name in resource["data"]} & secret


def test_the_network_lets_out_what_a_worker_needs_and_no_more():
    policy = one("overlays/one-shot", "NetworkPolicy")["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    ports = sorted({port["port"] for rule in policy["egress"] for port in rule["ports"]})
    assert ports == [53, 443, 5671, 5672]
    [world] = [rule["to"][0]["ipBlock"] for rule in policy["egress"] if "ipBlock" in rule["to"][0]]
    assert "169.254.0.0/16" in world["except"], "the cloud's metadata hands out credentials"
    for rule in policy["egress"]:
        assert rule["to"], "an empty `to` is everywhere"
    [rule] = policy["ingress"]
    assert [port["port"] for port in rule["ports"]] == [8080]


# --- they agree with the worker


@pytest.mark.parametrize("overlay", WORKERS)
def test_every_variable_is_a_setting_and_the_settings_are_valid(overlay, monkeypatch):
    data = settings_of(overlay)
    assert set(data) - SETTINGS <= OF_OTHERS
    for name, value in data.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("INTERNAL_API_TOKEN", "x")
    assert load_settings().environment == "production"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_command_is_one_of_the_workers_verbs_with_its_options(overlay):
    from typer.testing import CliRunner

    spec = pod_template(overlay)["spec"]
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        words = [word for word in container["args"] if not word.isdigit()]
        verbs = [word for word in words if not word.startswith("-")]
        for env in container.get("env", []):
            assert env["name"] in SETTINGS | OF_OTHERS
        group = next((g.typer_instance for g in app.registered_groups if g.name == verbs[0]), None)
        asked = verbs[:2] if group else verbs[:1]
        answer = CliRunner().invoke(app, [*asked, "--help"], env={"COLUMNS": "200"})
        assert answer.exit_code == 0, answer.output
        for option in (word for word in words if word.startswith("--")):
            assert option in answer.output


@pytest.mark.parametrize("overlay", WORKERS)
def test_probes_ask_for_pages_that_there_are(overlay):
    container = pod_template(overlay)["spec"]["containers"][0]
    served = (ROOT / "worker" / "jobs" / "health.py").read_text()
    for probe, path in [
        ("startupProbe", "/livez"),
        ("livenessProbe", "/livez"),  # never /readyz: no restart brings a broker back
        ("readinessProbe", "/readyz"),
    ]:
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
        assert f'"{path}": lambda' in served
    [port] = container["ports"]
    assert port == {"name": "http", "containerPort": int(settings_of(overlay)["HTTP_PORT"])}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 240  # the GPU check has 120 s


@pytest.mark.parametrize("overlay", WORKERS)
def test_a_pod_is_given_longer_than_the_worker_takes_to_stop(overlay):
    grace = float(settings_of(overlay)["SHUTDOWN_GRACE_SECONDS"])
    assert pod_template(overlay)["spec"]["terminationGracePeriodSeconds"] >= grace + 15


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_that_is_written_has_a_volume(overlay):
    spec = pod_template(overlay)["spec"]
    places = {mount["mountPath"]: mount for mount in spec["containers"][0]["volumeMounts"]}
    assert set(places) == {"/work", "/tmp", "/models"}
    assert places["/models"].get("readOnly", False) is (overlay != "models")


def test_both_kinds_of_workers_are_the_same_pod_but_for_what_makes_them_two_kinds():
    warm, once = (copy.deepcopy(pod_template(overlay)["spec"]) for overlay in WORKERS)
    assert once.pop("restartPolicy") == "Never"
    warm.pop("initContainers")
    warm["volumes"] = [v for v in warm["volumes"] if v["name"] != "cluster-access"]
    assert warm["containers"][0].pop("args") == ["run"]
    assert once["containers"][0].pop("args")[0] == "run"
    for spec in (warm, once):
        for source in spec["containers"][0]["envFrom"]:
            source.pop("configMapRef", None)
    assert warm == once


def test_alerts_and_scrape_use_the_name_that_the_pods_have():
    monitor = one("overlays/warm-pool", "PodMonitor")["spec"]
    for overlay in WORKERS:
        labels = pod_template(overlay)["metadata"]["labels"]
        assert labels[monitor["jobLabel"]] == "lora-worker"
        assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["podMetricsEndpoints"][0]["port"] == "http"
    rules = (ROOT / "config" / "prometheus" / "alerts.yml").read_text()
    assert 'job="lora-worker"' in rules


def test_the_rules_of_the_operator_are_the_rules_that_promtool_checks():
    alerts = yaml.safe_load((ROOT / "config" / "prometheus" / "alerts.yml").read_text())
    assert one("overlays/warm-pool", "PrometheusRule")["spec"] == alerts


# --- scaling


def triggers(overlay):
    kind = "ScaledJob" if overlay == "overlays/one-shot" else "ScaledObject"
    return {t["name"]: t for t in one(overlay, kind)["spec"]["triggers"]}


@pytest.mark.parametrize("overlay", WORKERS)
def test_the_scaler_counts_every_job_once_wherever_its_message_lies(overlay):
    metadata = triggers(overlay)["jobs"]["metadata"]
    # `amqp` sees ready messages alone: it would scale a busy pool to nothing.
    assert metadata["protocol"] == "http"
    assert "excludeUnacknowledged" not in metadata
    # Of several triggers the largest counts, not the sum: one trigger, over several queues.
    assert (metadata["useRegex"], metadata["operation"]) == ("true", "sum")
    topology = Topology()
    names = [topology.main, *(spec.name for spec in topology.own_queues), "x_model_training"]
    counted = {name for name in names if re.search(metadata["queueName"], name)}
    assert counted == {topology.main, topology.resume, topology.parked}


@pytest.mark.parametrize("overlay", WORKERS)
def test_webhooks_that_wait_bring_a_worker_too(overlay):
    metadata = triggers(overlay)["events"]["metadata"]
    topology = Topology()
    names = [topology.main, *(spec.name for spec in topology.own_queues)]
    assert [n for n in names if re.search(metadata["queueName"], n)] == [topology.events]


def test_a_pod_for_one_job_keeps_its_message_for_as_long_as_the_job_may_take():
    once = settings_of("overlays/one-shot")
    held = float(once["HANDOVER_AFTER_SECONDS"])
    longest = Settings.model_fields["job_time_limit_seconds"].default
    config = (ROOT / "config" / "rabbitmq" / "rabbitmq.conf").read_text()
    [broker_ms] = re.findall(r"^consumer_timeout = (\d+)$", config, re.MULTILINE)
    deadline = one("overlays/one-shot", "ScaledJob")["spec"]["jobTargetRef"]
    assert longest < held < int(broker_ms) / 1000
    assert deadline["activeDeadlineSeconds"] > held
    assert deadline["backoffLimit"] == 0
    assert one("overlays/one-shot", "ScaledJob")["spec"]["rollout"]["strategy"] == "gradual"
    assert "--max-jobs" in pod_template("overlays/one-shot")["spec"]["containers"][0]["args"]
    warm = settings_of("overlays/warm-pool")
    assert {name for name in once if once[name] != warm.get(name)} == {"HANDOVER_AFTER_SECONDS"}
