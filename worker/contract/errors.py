"""One error type for a job: a stable code, a sentence for a person, and whether to try again."""

from enum import StrEnum

from worker.contract.text import printable

#: Longest sentence that leaves the worker, characters: it travels in a webhook and in AMQP headers.
MAX_MESSAGE = 4000

#: Broken fields that a refusal names, and the most characters of a field's name and of what is
#: said of it. A stranger chooses how many there are, and how long.
_NAMED, _FIELD, _CLAUSE = 20, 100, 400


class ErrorCode(StrEnum):
    """The closed list of `error_code` in the `failed` webhook (contract §2)."""

    TRAINING_FAILED = "TRAINING_FAILED"
    INVALID_JOB = "INVALID_JOB"
    IMAGE_DOWNLOAD_FAILED = "IMAGE_DOWNLOAD_FAILED"
    INVALID_IMAGE = "INVALID_IMAGE"
    BASE_MODEL_UNAVAILABLE = "BASE_MODEL_UNAVAILABLE"
    GPU_OUT_OF_MEMORY = "GPU_OUT_OF_MEMORY"
    NON_FINITE_LOSS = "NON_FINITE_LOSS"
    UPLOAD_FAILED = "UPLOAD_FAILED"
    TIME_LIMIT_EXCEEDED = "TIME_LIMIT_EXCEEDED"
    WORKER_CRASHED = "WORKER_CRASHED"
    CANCELED = "CANCELED"


class JobError(Exception):
    """A job cannot go on.

    Attributes:
        code: what kind of failure, from the closed list.
        message: one sentence for the person who sent the job: the field or file, what was found,
            what to do. It leaves the worker, so it holds no secret, no local path, no stack trace;
            and since it may quote a stranger, at most `MAX_MESSAGE` characters, all printable.
        transient: True where the same job may succeed later without anybody changing it.
    """

    def __init__(self, code: ErrorCode, message: str, *, transient: bool = False) -> None:
        message = printable(message, MAX_MESSAGE)
        super().__init__(message)
        self.code = code
        self.message = message
        self.transient = transient

    def __repr__(self) -> str:
        kind = "transient" if self.transient else "permanent"
        return f"JobError({self.code}, {kind}, {self.message!r})"


class InvalidJob(JobError):  # noqa: N818 - named as the contract names it
    """The message breaks the contract: permanent, and its broken fields are named at once.

    Attributes:
        problems: `(field, sentence)` for each broken field, in the order of the message; the
            message names the first twenty.
        style_id: the message's style, where it could be read.
        webhook_base: where to say so, where it could be read.
        job_id: the identity, where it could be read.
        id_is_digest: the message named none, and this is the digest of its body.
    """

    def __init__(
        self,
        problems: list[tuple[str, str]],
        *,
        style_id: int | None = None,
        webhook_base: str | None = None,
        job_id: str | None = None,
        id_is_digest: bool = False,
    ) -> None:
        named = [
            f"{printable(field, _FIELD)}: {printable(what, _CLAUSE)}"
            if field
            else printable(what, _CLAUSE)
            for field, what in problems[:_NAMED]
        ]
        if len(problems) > _NAMED:
            named.append(f"and {len(problems) - _NAMED} more")
        text = "; ".join(named)
        super().__init__(ErrorCode.INVALID_JOB, f"The job message is not valid: {text}.")
        self.problems = problems
        self.style_id = style_id
        self.webhook_base = webhook_base
        self.job_id = job_id
        self.id_is_digest = id_is_digest
