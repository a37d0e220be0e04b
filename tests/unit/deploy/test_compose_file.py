"""The compose file agrees with the worker, the broker's configuration and the monitoring."""

import json
import re
from pathlib import Path

import pytest
import yaml

from worker.broker.topology import Topology
from worker.settings import Settings

ROOT = Path(__file__).parents[3]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
WORKERS = ("worker", "worker-gpu")
RABBITMQ = ROOT / "config" / "rabbitmq"
POLICIES = json.loads((RABBITMQ / "definitions.json").read_text())["policies"]

SETTINGS = {name.upper() for name in Settings.model_fields}
OF_THE_SDK = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"}
OF_TORCH = {"OMP_NUM_THREADS"}


def environment(service):
    return SERVICES[service].get("environment", {})


@pytest.mark.parametrize("service", [*WORKERS, "setup"])
def test_every_variable_is_a_setting(service):
    assert set(environment(service)) - OF_THE_SDK <= SETTINGS
    quick = yaml.safe_load((ROOT / "tests" / "compose" / "quick.yml").read_text())
    changed = quick["services"].get(service, {}).get("environment", {})
    assert set(changed) - OF_TORCH <= SETTINGS


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_belongs_to_a_profile_and_says_how_it_is(name):
    service = SERVICES[name]
    alone = {"worker": ["demo"], "worker-gpu": ["gpu"]}
    assert service["profiles"] == alone.get(name, ["demo", "gpu"])
    # Workers have the check of their image; `setup` ends.
    assert "healthcheck" in service or name in WORKERS


@pytest.mark.parametrize("name", SERVICES)
def test_whoever_waits_waits_until_the_other_is_well(name):
    for other, how in SERVICES[name].get("depends_on", {}).items():
        ends = other == "setup"
        assert how == {"condition": "service_completed_successfully" if ends else "service_healthy"}


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_ports_are_of_this_machine_alone(name):
    service = SERVICES[name]
    if "build" not in service:
        assert re.search(r":v?\d+\.\d+", service["image"])
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", [*WORKERS, "setup", "receiver"])
def test_our_containers_are_read_only_and_may_nothing(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_is_given_longer_than_it_takes_to_stop(name):
    grace = Settings.model_fields["shutdown_grace_seconds"].default
    assert SERVICES[name]["stop_grace_period"] == "2m"
    assert grace < 120


def test_prometheus_finds_the_workers_of_both_profiles_by_one_name():
    config = yaml.safe_load((ROOT / "config" / "prometheus" / "prometheus.yml").read_text())
    [jobs] = [c for c in config["scrape_configs"] if c["job_name"] == "lora-worker"]
    [found] = jobs["dns_sd_configs"]
    for name in WORKERS:
        assert SERVICES[name]["networks"]["default"]["aliases"] == found["names"]
    assert found["port"] == 8080


def test_grafana_is_given_what_its_configuration_names():
    provisioning = ROOT / "config" / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "lora-worker.yml").read_text())[
        "providers"
    ]
    mounts = [mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"]]
    assert ["./config/grafana/provisioning", "/etc/grafana/provisioning"] in mounts
    [dashboard] = [inside for outside, inside in mounts if outside.endswith("lora-worker.json")]
    assert dashboard.startswith(provider["options"]["path"] + "/")
    assert environment("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard


@pytest.mark.parametrize("name", SERVICES)
def test_every_file_that_is_mounted_is_there(name):
    for mount in SERVICES[name].get("volumes", []):
        outside = mount.split(":")[0]
        if outside.startswith("./"):
            assert (ROOT / outside).exists()


# --- the broker


def test_the_brokers_passwords_come_from_the_environment():
    config = (RABBITMQ / "rabbitmq.conf").read_text()
    asked = set(re.findall(r"password = \$\((\w+)\)", config))
    assert asked == set(environment("rabbitmq"))
    assert len(re.findall(r"\.password = ", config)) == len(asked)
    url = environment("worker")["RABBITMQ_URL"]
    assert f":{environment('rabbitmq')['LORA_WORKER_PASSWORD']}@" in url
    assert "users" not in json.loads((RABBITMQ / "definitions.json").read_text())


def test_the_workers_user_may_use_its_queues_and_no_others():
    config = (RABBITMQ / "rabbitmq.conf").read_text()
    rights = dict(re.findall(r"^default_users\.lora-worker\.(\w+) = (.*)$", config, re.MULTILINE))
    topology = Topology()
    ours = [
        *(topology.main, topology.control, topology.control_queue("worker-1")),
        *(spec.name for spec in topology.own_queues),
    ]
    for right in ("configure", "write", "read"):
        for name in ours:
            assert re.search(rights[right], name), f"{right} on {name}"
        assert not re.search(rights[right], "payments")
    assert re.search(rights["write"], "amq.default")
    assert not re.search(rights["configure"], "amq.default")


def test_policies_reach_the_queues_that_messages_come_back_to_and_no_others():
    topology = Topology()
    names = [topology.main, *(spec.name for spec in topology.own_queues)]
    reached = {p["name"]: [n for n in names if re.search(p["pattern"], n)] for p in POLICIES}
    assert reached == {
        "lora-worker-jobs": [topology.main],
        "lora-worker-own": [topology.resume, topology.events],
        "lora-worker-dead": [topology.dead, topology.events_dead],
    }


def test_a_message_that_comes_back_too_often_is_kept():
    """Backends declare their queue without arguments: only a policy can say where it goes."""
    [jobs] = [p["definition"] for p in POLICIES if p["name"] == "lora-worker-jobs"]
    topology = Topology(queue_type="quorum")
    assert jobs["dead-letter-routing-key"] == topology.dead
    assert (jobs["dead-letter-strategy"], jobs["overflow"]) == ("at-least-once", "reject-publish")
    [resume] = [spec for spec in topology.own_queues if spec.name == topology.resume]
    assert resume.arguments["x-dead-letter-routing-key"] == topology.dead


def test_a_dead_letter_may_be_looked_at_as_often_as_one_likes():
    """Looking takes and gives back, and from a queue of dead letters there is nowhere to go."""
    [dead] = [p for p in POLICIES if p["name"] == "lora-worker-dead"]
    assert dead["definition"] == {"delivery-limit": -1}
    assert {(p["apply-to"], p["priority"]) for p in POLICIES} == {("quorum_queues", 10)}


def test_our_queues_are_of_the_type_that_the_broker_gives_to_the_backends():
    config = (RABBITMQ / "rabbitmq.conf").read_text()
    [given] = re.findall(r"^default_queue_type = (\w+)$", config, re.MULTILINE)
    assert environment("worker")["RABBITMQ_QUEUE_TYPE"] == given
    for vhost in json.loads((RABBITMQ / "definitions.json").read_text())["vhosts"]:
        assert vhost["default_queue_type"] == given
