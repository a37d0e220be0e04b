"""What does a message ask for? Both body shapes become one `TrainingJob`, or say why not."""

import hashlib
import json
import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.config import JsonDict

from worker.contract.bounds import MAX_DEPTH, MAX_NAME, is_deep, too_many
from worker.contract.captions import MAX_CAPTION, filled_template
from worker.contract.errors import InvalidJob
from worker.contract.other_names import document_other_names
from worker.contract.parameters import TrainingParameters
from worker.contract.picture_counts import picture_conflicts
from worker.contract.sentences import sentence
from worker.contract.text import printable

#: The only `type` of an enveloped message that this worker takes.
MESSAGE_TYPE = "model_training"

#: Characters of a job id: it becomes part of object keys and of an HTTP header.
JOB_ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:@=+-]{0,199}"

#: Longest message body that is parsed, bytes.
MAX_BODY_BYTES = 4 * 1024 * 1024

#: Ignored fields that are named in a log line.
_IGNORED_NAMED = 20

#: Longest webhook address, characters.
_MAX_WEBHOOK_URL = 2048

#: Longest tag, characters.
_MAX_TAG = 500

#: Largest number that a database keeps as a key.
_MAX_STYLE_ID = 2**63 - 1

#: From here on, a webhook address in a message is cut off (contract §1).
WEBHOOK_PATH = "/api/webhooks/"

_SCHEMES = ("s3://", "gs://", "https://", "file:///")

#: What a picture's address looks like, for the published schema.
_ADDRESS: JsonDict = {"pattern": f"^({'|'.join(_SCHEMES)})"}


class ImageReference(BaseModel):
    """Where one picture is, and what it shows if the sender says so."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    url: str = Field(
        min_length=1,
        max_length=4096,
        description="s3://, gs://, https:// or file:///",
        json_schema_extra=_ADDRESS,
    )
    caption: str | None = Field(
        None,
        max_length=MAX_CAPTION,
        description="What the picture shows; [trigger] stands for the trigger word.",
    )

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        if not value.startswith(_SCHEMES):
            raise ValueError(f"{value[:100]!r} must start with one of {', '.join(_SCHEMES)}")
        return value


#: One word, or a few, of a caption template.
_Tag = Annotated[str, Field(max_length=_MAX_TAG)]

_Picture = Annotated[str, Field(max_length=4096, json_schema_extra=_ADDRESS)] | ImageReference
_Pictures = Annotated[list[_Picture], Field(min_length=1)]


class TrainingJob(BaseModel):
    """One job, whichever shape its message had."""

    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        str_strip_whitespace=True,
        json_schema_extra=document_other_names,
    )

    job_id: str = Field(
        pattern=f"^{JOB_ID_PATTERN}$",
        validation_alias=AliasChoices("job_id", "task_id"),
        description="Identity: two deliveries with one id are one job.",
    )
    style_id: int = Field(gt=0, le=_MAX_STYLE_ID, strict=True, description="The backend's key.")
    images: tuple[ImageReference, ...] = Field(
        min_length=1,
        validation_alias=AliasChoices("image_urls", "images"),
        description="The pictures: URLs, or objects with url and caption.",
    )
    class_images: tuple[ImageReference, ...] = Field(
        (),
        description="Pictures of the class, for parameters.with_prior_preservation: URLs, or "
        "objects with url and caption; the caption is class_prompt if there is none.",
    )
    webhook_url: str | None = Field(
        None,
        max_length=_MAX_WEBHOOK_URL,
        validation_alias=AliasChoices("webhook_url", "callback_url"),
        description="Base URL of the backend; cut off from /api/webhooks/ on.",
    )
    trigger_word: str | None = Field(None, max_length=100, description="Word that calls the style.")
    tags: tuple[_Tag, ...] = Field((), max_length=100, description="Words of the caption template.")
    caption_template: str | None = Field(
        None,
        max_length=1000,
        description="Caption of a picture without one: {trigger} (or [trigger]), {tags}.",
    )
    parameters: TrainingParameters = Field(
        default_factory=TrainingParameters, description="Training parameters."
    )

    @field_validator("images", mode="before", json_schema_input_type=_Pictures)
    @classmethod
    def _urls_are_images(cls, value: Any) -> Any:
        return _references(value)

    @field_validator("class_images", mode="before", json_schema_input_type=list[_Picture])
    @classmethod
    def _urls_are_class_images(cls, value: Any) -> Any:
        return _references(value)

    @field_validator("webhook_url")
    @classmethod
    def _base_only(cls, value: str | None) -> str | None:
        return webhook_base(value) if value else None

    @property
    def wanted_images(self) -> list[tuple[str, str | None]]:
        """Every picture to fetch and its caption, if it was sent: the images, then the class's."""
        sent = [(image.url, image.caption) for image in self.images]
        prompt = self.parameters.class_prompt
        return sent + [(image.url, image.caption or prompt) for image in self.class_images]

    @property
    def seed(self) -> int:
        """The seed of every random number of this job; from the job id unless one was sent."""
        if self.parameters.seed is not None:
            return self.parameters.seed
        return int.from_bytes(hashlib.sha256(self.job_id.encode()).digest()[:8], "big") >> 1

    def template_caption(self) -> str:
        """The caption of a picture that has none of its own; empty without trigger and tags."""
        return filled_template(self.caption_template, self.trigger_word, self.tags)


def _references(value: Any) -> Any:
    """A plain address is a picture without a caption."""
    if isinstance(value, list | tuple):
        return [{"url": item} if isinstance(item, str) else item for item in value]
    return value


def webhook_base(url: str) -> str:
    """The base of a webhook address: everything before `/api/webhooks/`, no slash at the end."""
    return url.split(WEBHOOK_PATH, 1)[0].rstrip("/")


def digest_id(payload: Any) -> str:
    """The identity of a body without an id: a digest of its canonical JSON."""
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256-" + hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:40]


class ParsedMessage(BaseModel):
    """A valid message.

    Attributes:
        job: what to train.
        id_is_digest: the message named no id; `job.job_id` is the digest of its body.
        ignored_fields: names in the body that the contract does not know, for one log line.
        created_at: when its sender made it, if the body says so with a time zone.
    """

    model_config = ConfigDict(frozen=True)

    job: TrainingJob
    created_at: datetime | None
    id_is_digest: bool
    ignored_fields: tuple[str, ...]


def parse_message(
    body: bytes, *, message_id: str | None = None, max_images: int = 1000
) -> ParsedMessage:
    """Read a message body of either shape.

    Args:
        body: the bytes as delivered.
        message_id: AMQP's `message_id`, the identity where the body names none.
        max_images: the operator's limit.

    Raises:
        InvalidJob: with every broken field, and with whatever of style, webhook base and job id
            could still be read, so that the sender can be told.
    """
    payload = _decode(body)
    fields, ignored = _unwrap(payload)
    given_id = next((fields[k] for k in ("job_id", "task_id") if fields.get(k) is not None), None)
    job_id = given_id if given_id is not None else message_id
    id_is_digest = job_id is None
    if id_is_digest:
        job_id = digest_id(payload)
    fields = {k: v for k, v in fields.items() if k not in ("job_id", "task_id") and v is not None}
    fields["job_id"] = str(job_id) if type(job_id) is int else job_id

    problems = too_many(fields, max_images)
    if payload.get("type", MESSAGE_TYPE) != MESSAGE_TYPE:
        problems.append(("type", f"must be {MESSAGE_TYPE!r}, found {payload['type']!r}"))
    job = None
    try:
        job = TrainingJob.model_validate(fields)
    except ValidationError as error:
        details = error.errors()
        # A list whose items are all refused is not also "empty".
        refused = {detail["loc"][:1] for detail in details if len(detail["loc"]) > 1}
        details = [d for d in details if d["type"] != "too_short" or d["loc"] not in refused]
        problems += [sentence(detail) for detail in details]
    if job is not None:
        problems += picture_conflicts(job.parameters, len(job.images), len(job.class_images))
    if problems or job is None:
        raise _invalid(problems, fields, id_is_digest=id_is_digest)
    return ParsedMessage(
        job=job,
        id_is_digest=id_is_digest,
        ignored_fields=ignored,
        created_at=_moment(payload.get("created_at")),
    )


def _moment(text: Any) -> datetime | None:
    """An ISO 8601 time with its zone; None if it is anything else: it decides nothing by itself."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo is not None else None


def _decode(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_BODY_BYTES:
        raise InvalidJob(
            [("", f"the body has {len(body)} bytes; at most {MAX_BODY_BYTES} are read")]
        )
    try:
        payload = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise InvalidJob([("", "the body is not JSON in UTF-8; send one JSON object")]) from None
    if not isinstance(payload, dict):
        kind = type(payload).__name__
        raise InvalidJob([("", f"the body is a JSON {kind}; send one JSON object")])
    if is_deep(payload):
        raise InvalidJob([("", f"the body is nested more than {MAX_DEPTH} deep")])
    return payload


def _unwrap(payload: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """One flat dict of known fields, and the names of the unknown ones."""
    known = {"job_id"}
    for name, field in TrainingJob.model_fields.items():
        alias = field.validation_alias
        known |= set(map(str, alias.choices)) if isinstance(alias, AliasChoices) else {name}
    envelope = {"type", "data", "created_at"}
    flat = dict(payload)
    ignored = [name for name in payload if name not in known | envelope]
    data = payload.get("data")
    if isinstance(data, dict):
        flat = payload | {name: value for name, value in data.items() if value is not None}
        ignored += [f"data.{name}" for name in data if name not in known]
    named = [printable(name, MAX_NAME) for name in ignored[:_IGNORED_NAMED]]
    if len(ignored) > _IGNORED_NAMED:
        named.append(f"and {len(ignored) - _IGNORED_NAMED} more")
    return {k: v for k, v in flat.items() if k in known}, tuple(named)


def _invalid(
    problems: list[tuple[str, str]], fields: dict[str, Any], *, id_is_digest: bool
) -> InvalidJob:
    style, url, job_id = fields.get("style_id"), _first_url(fields), fields.get("job_id")
    return InvalidJob(
        problems,
        style_id=style if type(style) is int and 0 < style <= _MAX_STYLE_ID else None,
        webhook_base=webhook_base(url) if url else None,
        job_id=job_id if isinstance(job_id, str) and re.fullmatch(JOB_ID_PATTERN, job_id) else None,
        id_is_digest=id_is_digest,
    )


def _first_url(fields: dict[str, Any]) -> str | None:
    for name in ("webhook_url", "callback_url"):
        url = fields.get(name)
        if isinstance(url, str) and len(url) <= _MAX_WEBHOOK_URL:
            return url
    return None
