"""Are the services that jobs need fit for them? Broker, store, picture sources, receivers."""

import os
from datetime import UTC, datetime

from worker.broker.connection import BrokerAddress
from worker.broker.examination import (
    BrokerFound,
    BrokerNotReached,
    BrokerRefuses,
    examine,
    greet,
)
from worker.jobs.finding import Finding, failed, ok, warning
from worker.jobs.from_settings import s3_store, topology_of
from worker.outbound.address import HostList
from worker.settings import Settings
from worker.storage.store import ObjectUrl, StorageError
from worker.webhooks.reach import why_unreachable

#: A broker older than this was never tried with, as (major, minor).
OLDEST_BROKER = (3, 10)

#: A clock that differs more from the store's is worth a word; beyond the second the store refuses
#: what is signed with it. Seconds.
_CLOCK_SECONDS, _CLOCK_REFUSED_SECONDS = 5.0, 900.0


def broker_lets_us_in(settings: Settings) -> list[Finding]:
    """The broker does not refuse us; whether it is there at all is not asked at a start."""
    try:
        greet(BrokerAddress(settings.broker_url))
    except BrokerRefuses as error:
        return [failed("broker", f"RABBITMQ_URL: the broker refuses this login: {error}")]
    except BrokerNotReached as error:
        return [warning("broker", f"the broker is not there yet: {error}")]
    except ValueError as error:
        return [failed("broker", f"RABBITMQ_URL is not valid: {error}")]
    return [ok("broker", "the broker lets us in")]


def broker(settings: Settings) -> list[Finding]:
    """Version, permissions, and every queue with the arguments that the settings ask for."""
    try:
        found = examine(BrokerAddress(settings.broker_url), topology_of(settings))
    except BrokerRefuses as error:
        return [failed("broker", f"RABBITMQ_URL: the broker refuses this login: {error}")]
    except BrokerNotReached as error:
        return [failed("broker", f"the broker cannot be reached: {error}")]
    except ValueError as error:
        return [failed("broker", f"RABBITMQ_URL is not valid: {error}")]
    return [_version(found), _permissions(found), *_queues(found)]


def _version(found: BrokerFound) -> Finding:
    sentence = f"{found.product} {found.version}"
    numbers = found.version.split(".")[:2]
    if all(part.isdigit() for part in numbers) and tuple(map(int, numbers)) < OLDEST_BROKER:
        oldest = ".".join(map(str, OLDEST_BROKER))
        return warning("broker", f"{sentence}; the oldest that was tried is {oldest}")
    return ok("broker", sentence)


def _permissions(found: BrokerFound) -> Finding:
    if found.not_allowed:
        return failed("broker", f"its user may not do what the worker does: {found.not_allowed}")
    return ok("broker", "its user may declare, write and read")


def _queues(found: BrokerFound) -> list[Finding]:
    other = [queue.name for queue in found.queues if queue.state == "otherwise"]
    absent = [queue.name for queue in found.queues if queue.state == "missing"]
    findings = []
    if other:
        findings.append(
            warning(
                "queues",
                f"{', '.join(other)}: declared with other arguments than the settings ask for; "
                "they are used as they are; drain and delete them to have them declared anew",
            )
        )
    if absent:
        findings.append(warning("queues", f"{len(absent)} missing: declared at the next start"))
    return findings or [ok("queues", f"all {len(found.queues)} as the settings ask for")]


def store(settings: Settings) -> list[Finding]:
    """The bucket can be read and written, conditional writes are enforced, clocks agree."""
    bucket = settings.s3_bucket
    try:
        objects = s3_store(settings)
        abilities = objects.probe(ObjectUrl(bucket, "jobs/"))
        if not abilities.writable:
            return [failed("store", f"S3_BUCKET {bucket} cannot be written: {abilities.reason}")]
        url = ObjectUrl(bucket, f"jobs/.doctor-{os.getpid()}")
        objects.write(url, b"?", content_type="text/plain")
        read = objects.read(url)
        objects.delete(url)
    except (StorageError, ValueError) as error:
        return [failed("store", f"S3_BUCKET {bucket} cannot be used: {error}")]
    if read is None or read.body != b"?":
        return [failed("store", f"S3_BUCKET {bucket}: what was written is not read back")]
    findings = [ok("store", f"bucket {bucket} is read and written")]
    if abilities.conditional_put:
        findings.append(ok("store", "conditional writes are enforced"))
    else:
        findings.append(failed("store", f"two workers may train one job: {abilities.reason}"))
    return [*findings, _clock(read.server_time)]


def _clock(server_time: datetime) -> Finding:
    seconds = abs((datetime.now(UTC) - server_time).total_seconds())
    sentence = f"this machine's clock and the store's differ by {seconds:.0f} s"
    if seconds > _CLOCK_REFUSED_SECONDS:
        return failed("clock", f"{sentence}; set the clock")
    return warning("clock", sentence) if seconds > _CLOCK_SECONDS else ok("clock", sentence)


def pictures(settings: Settings) -> list[Finding]:
    """Messages may name some buckets only; in development any will do."""
    if settings.image_allowed_buckets or settings.environment != "production":
        return []
    sentence = "messages may name any bucket that the worker's credentials can read"
    return [warning("pictures", f"IMAGE_ALLOWED_BUCKETS is empty: {sentence}")]


def webhooks(settings: Settings) -> list[Finding]:
    """The receivers' hosts accept connections, with TLS where that is required."""
    if not settings.webhook_allowed_hosts:
        refused = "every job with a webhook_url is refused, and nobody is told"
        return [warning("webhooks", f"WEBHOOK_ALLOWED_HOSTS is empty: {refused}")]
    try:
        hosts = HostList(settings.webhook_allowed_hosts)
    except ValueError as error:
        return [failed("webhooks", f"WEBHOOK_ALLOWED_HOSTS is not valid: {error}")]
    production = settings.environment == "production"
    found = why_unreachable(hosts, require_https=production)
    return [
        warning("webhooks", f"{name} cannot be reached: {problem}")
        if problem
        else ok("webhooks", f"{name} can be reached")
        for name, problem in found.items()
    ]
