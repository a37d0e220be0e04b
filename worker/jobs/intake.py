"""Is this message a job that we can take? Read it, find its identity, its receiver, its model."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from worker.broker.delivery import Delivery
from worker.contract.base_model import BaseModelEntry
from worker.contract.base_model_choice import chosen_base_model
from worker.contract.errors import ErrorCode, InvalidJob
from worker.contract.job import ParsedMessage, TrainingJob, parse_message
from worker.jobs.conclusion import ended_result
from worker.jobs.record import JobRecord, Result
from worker.webhooks.allow_list import WebhookAllowList, WebhookNotAllowed

log = structlog.get_logger()


@dataclass(frozen=True)
class Order:
    """A job that this worker can train.

    Attributes:
        base: whom to tell; nobody if None.
        base_model: what it is trained on.
        fingerprint: digest of the content; one id belongs to one content.
        record: its objects in the store.
        ignored_fields: names in the message that the contract does not know.
        sent_at: seconds since the epoch, by its sender's clock; None if nothing says it.
        nameless: its message has no id, so that another delivery of it may be read otherwise.
    """

    job: TrainingJob
    base: str | None
    base_model: BaseModelEntry
    fingerprint: str
    record: JobRecord
    ignored_fields: tuple[str, ...]
    sent_at: float | None
    nameless: bool

    def failed(self, epoch: int, code: ErrorCode, message: str) -> Result:
        """The result of this job if it fails."""
        return ended_result(
            self.job.job_id, self.job.style_id, self.base, epoch, self.fingerprint, code, message
        )

    def canceled(self, epoch: int) -> Result:
        """The result of this job if it is canceled."""
        sentence = "The job was canceled; nothing was uploaded."
        return self.failed(epoch, ErrorCode.CANCELED, sentence)


def fingerprint_of(job: TrainingJob) -> str:
    """Digest of what its sender has said, and of no default.

    A job may begin on one release and go on on the next, which knows more parameters.
    """
    said = job.model_dump(mode="json", exclude={"job_id"}, exclude_unset=True)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class Intake:
    """Turns deliveries into orders."""

    def __init__(
        self,
        *,
        record: Callable[[str], JobRecord],
        catalogue: dict[str, BaseModelEntry],
        default_base_model: str,
        allow_list: WebhookAllowList,
        webhook_base_url: str | None,
        max_images: int,
    ) -> None:
        """Keep the operator's rules; `worker.settings` explains each."""
        self._record = record
        self._catalogue, self._default_base_model = catalogue, default_base_model
        self._allow_list, self._webhook_base_url = allow_list, webhook_base_url
        self._max_images = max_images

    def read(self, delivery: Delivery) -> Order:
        """The order in a delivery.

        Raises:
            InvalidJob: the message breaks the contract or the operator's rules.
            StorageError: its identity could not be looked up.
        """
        parsed = parse_message(
            delivery.body, message_id=delivery.message_id, max_images=self._max_images
        )
        job = self._identified(parsed, delivery)
        base = self._receiver(job)
        return Order(
            job=job,
            base=base,
            base_model=self._base_model(job, base),
            fingerprint=fingerprint_of(job),
            record=self._record(job.job_id),
            ignored_fields=parsed.ignored_fields,
            sent_at=parsed.created_at.timestamp() if parsed.created_at else delivery.timestamp,
            nameless=parsed.id_is_digest,
        )

    def refusal(self, error: InvalidJob, delivery: Delivery) -> tuple[str, Result | None]:
        """The id of a refused message, and the failure to record where somebody can be told.

        Raises:
            StorageError: its identity could not be looked up.
        """
        digest = hashlib.sha256(delivery.body).hexdigest()
        job_id = error.job_id or f"sha256-{digest[:40]}"
        if error.id_is_digest:
            job_id = self._run(job_id, delivery)
        base = self._webhook_base_url or error.webhook_base
        if error.style_id is None or base is None or not self._allow_list.allows(base):
            return job_id, None
        return job_id, ended_result(
            job_id, error.style_id, base, 0, f"invalid-{digest}", error.code, error.message
        )

    def _identified(self, parsed: ParsedMessage, delivery: Delivery) -> TrainingJob:
        """The job under its run's id."""
        if not parsed.id_is_digest:
            return parsed.job
        return parsed.job.model_copy(update={"job_id": self._run(parsed.job.job_id, delivery)})

    def _run(self, digest: str, delivery: Delivery) -> str:
        """The id of the run that a message without any id is for.

        Its body is a new run each time it is published after its last run ended: digest, digest-2,
        digest-3, …
        """
        run = 1
        while self._record(_run_id(digest, run)).result() is not None:
            run += 1
        if delivery.came_back and run > 1 and self._record(_run_id(digest, run)).lease() is None:
            run -= 1
        return _run_id(digest, run)

    def _receiver(self, job: TrainingJob) -> str | None:
        base = self._webhook_base_url or job.webhook_url
        if base is None:
            log.warning("job_without_webhook", job_id=job.job_id, style_id=job.style_id)
            return None
        try:
            self._allow_list.check(base)
        except WebhookNotAllowed as error:
            problem = ("webhook_url", error.message.rstrip("."))
            raise InvalidJob([problem], style_id=job.style_id, job_id=job.job_id) from None
        return base

    def _base_model(self, job: TrainingJob, base: str | None) -> BaseModelEntry:
        try:
            return chosen_base_model(job.parameters, self._catalogue, self._default_base_model)
        except InvalidJob as error:
            raise InvalidJob(
                error.problems, style_id=job.style_id, webhook_base=base, job_id=job.job_id
            ) from None


def _run_id(digest: str, run: int) -> str:
    return digest if run == 1 else f"{digest}-{run}"
