"""Which knobs does an operator have? Every one, with its type, default, unit and one line."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote, urlsplit

from pydantic import (
    AliasChoices,
    Field,
    PositiveFloat,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

#: Exit status of a start with settings that cannot work (sysexits' EX_USAGE).
EXIT_SETTINGS = 64

#: Secrets that libraries read from the environment themselves: the store's, the model hub's, a
#: trace exporter's.
SECRETS_OF_LIBRARIES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    *("AWS_CONTAINER_AUTHORIZATION_TOKEN", "OTEL_EXPORTER_OTLP_HEADERS"),
)

_CommaList = Annotated[tuple[str, ...], NoDecode]
_Ladder = Annotated[tuple[PositiveFloat, ...], NoDecode, Field(min_length=1)]


class SettingsError(Exception):
    """The settings cannot work. `problems` has one sentence each, with the variable's name."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Settings(BaseSettings):
    """The worker's settings, read from the environment."""

    model_config = SettingsConfigDict(
        extra="ignore", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    # --- where it runs
    environment: Literal["development", "staging", "production"] = Field(
        "development", description="In production a missing token or GPU stops the start."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least level that is logged."
    )
    log_format: Literal["json", "console"] = Field("json", description="How log lines look.")
    work_dir: Path = Field(
        Path("/tmp/lora-worker"),  # noqa: S108 - the operator's choice; folders inside are private
        description="Folder for downloads, checkpoints and outputs of running jobs.",
    )

    http_port: int = Field(
        0, ge=0, le=65535, description="Port of health, status page and metrics; none if 0."
    )
    http_address: str = Field(
        "127.0.0.1", description="Address that they are served on; 0.0.0.0 in a container."
    )

    # --- the broker
    rabbitmq_url: SecretStr | None = Field(
        None, description="amqp:// or amqps:// address; wins over the parts below."
    )
    rabbitmq_host: str = Field("localhost", description="Broker host.")
    rabbitmq_port: int = Field(5672, ge=1, le=65535, description="Broker port.")
    rabbitmq_user: str = Field("guest", description="Broker user.")
    rabbitmq_password: SecretStr = Field(
        SecretStr("guest"),
        validation_alias=AliasChoices("rabbitmq_password", "rabbitmq_pass"),
        description="Broker password (also RABBITMQ_PASS).",
    )
    rabbitmq_vhost: str = Field("/", description="Broker virtual host.")
    rabbitmq_queue: str = Field(
        "model_training", min_length=1, max_length=200, description="Queue that jobs arrive on."
    )
    rabbitmq_queue_type: Literal["classic", "quorum"] = Field(
        "classic", description="Type of the queues that the worker declares beside it."
    )
    rabbitmq_heartbeat_seconds: int = Field(
        60, ge=1, le=3600, description="AMQP heartbeat, seconds."
    )
    rabbitmq_give_up_seconds: float = Field(
        600, gt=0, description="Exit when there was no broker session for so many seconds."
    )
    handover_after_seconds: float = Field(
        1200,
        gt=0,
        description="Longest time a delivery is held unacknowledged, seconds; then it is parked.",
    )
    parked_seconds: float = Field(
        60, gt=0, description="How long a parked message waits before it is looked at, seconds."
    )
    dead_letter_max_messages: int = Field(
        10_000, ge=1, description="Bound of the dead-letter queues, messages."
    )

    job_retry_seconds: _Ladder = Field(
        (30.0, 120.0, 600.0, 3600.0),
        description="Waits before a job that failed for a passing reason is tried again, seconds.",
    )

    # --- the store
    s3_bucket: str = Field(
        "stylelicense-models", min_length=3, max_length=63, description="Bucket of the results."
    )
    s3_endpoint_url: str | None = Field(
        None, description="Any S3-compatible server; Amazon's if empty."
    )
    s3_timeout_seconds: float = Field(30, gt=0, description="Per read and connect, seconds.")

    # --- the webhooks
    internal_api_token: SecretStr | None = Field(
        None, description="Bearer token of the webhooks. Required in production."
    )
    webhook_allowed_hosts: _CommaList = Field(
        (), description="Hosts (comma-separated, host or host:port) that may get the token."
    )
    webhook_base_url: str | None = Field(
        None, description="Base of the webhooks; overrides the one in the message."
    )
    webhook_signing_secret: SecretStr | None = Field(
        None, description="Standard Webhooks secret (whsec_…); signs every webhook if set."
    )
    webhook_timeout_seconds: float = Field(
        15, gt=0, le=300, description="Total time of one webhook request, seconds."
    )
    webhook_retry_seconds: _Ladder = Field(
        (30.0, 120.0, 600.0, 3600.0, 21600.0),
        description="Waits before a terminal webhook is tried again, seconds; the last repeats.",
    )
    webhook_retry_total_seconds: float = Field(
        3 * 86_400.0, gt=0, description="A terminal webhook is given up after so many seconds."
    )
    progress_interval_seconds: float = Field(
        30, gt=0, description="Time between two progress webhooks, seconds."
    )

    # --- the pictures
    max_images: int = Field(1000, ge=1, le=100_000, description="Most pictures in one job.")
    max_image_bytes: int = Field(
        50 * 1024 * 1024, ge=1024, description="Largest picture file, bytes."
    )
    image_allowed_buckets: _CommaList = Field(
        (),
        description="Buckets (bucket or bucket/folder/, comma-separated) that pictures may come "
        "from; any that the credentials can read if empty.",
    )
    image_allowed_hosts: _CommaList = Field(
        (), description="Hosts that pictures may come from over https, comma-separated."
    )
    allow_local_images: bool = Field(False, description="Accept file:/// pictures in messages.")
    download_parallelism: int = Field(8, ge=1, le=64, description="Pictures fetched at a time.")
    download_timeout_seconds: float = Field(
        300, gt=0, description="Total time to fetch one picture, seconds."
    )

    # --- the training
    base_models_file: Path = Field(
        Path("config/base_models.toml"), description="Catalogue of the allowed base models."
    )
    default_base_model: str = Field(
        "stable-diffusion-v1-5", description="Row of the catalogue for jobs that name none."
    )
    allow_model_hub: bool = Field(
        False, description="Let a trainer fetch base models from the model hub."
    )
    cuda_visible_devices: str | None = Field(
        None, description="GPUs this worker may use; all if empty."
    )
    step_launch: Literal["auto", "eager", "graph", "compile"] = Field(
        "auto",
        description="How training steps reach a GPU: one kernel at a time, as a recorded CUDA "
        "graph, or with compiled blocks; auto records long enough jobs.",
    )
    compile_cache_dir: Path | None = Field(
        None, description="Folder for compiled blocks that outlives the container."
    )
    trainers_per_gpu: int = Field(
        1, ge=1, le=16, description="Trainers that share one GPU (or a machine without any)."
    )
    gpus_per_trainer: int = Field(
        1, ge=1, le=16, description="GPUs that train one job together; they must divide evenly."
    )
    pack_slots: int = Field(
        1,
        ge=1,
        le=64,
        description="Jobs that one trainer trains in one pass; 1: one job after another.",
    )
    pack_wait_seconds: float = Field(
        0, ge=0, description="How long a lone job waits for company in its passes, seconds."
    )
    trainer_max_jobs: int = Field(50, ge=1, description="A trainer is replaced after so many jobs.")
    prefetch_seconds: float = Field(
        30,
        ge=0,
        description="The next job is taken, and its pictures fetched, when the running one trains "
        "for less than so many seconds more; 0 to wait until its trainer is free.",
    )
    trainer_start_timeout_seconds: float = Field(
        300, gt=0, description="A trainer must be ready within so many seconds."
    )
    job_time_limit_seconds: float = Field(
        6 * 3600, gt=0, description="Longest training of any job, seconds."
    )
    job_max_age_seconds: PositiveFloat | None = Field(
        None,
        description="A job that waits longer for its first worker fails, seconds; no limit if "
        "empty. Its age is told by created_at in the message or by AMQP's timestamp.",
    )
    max_attempts: int = Field(
        5,
        ge=1,
        le=20,
        description="Attempts without progress before a job is given up; of JOB_RETRY_SECONDS "
        "one wait fewer is used.",
    )
    shutdown_grace_seconds: float = Field(
        90, gt=0, description="After SIGTERM the worker is gone within so many seconds."
    )
    lease_term_seconds: float = Field(
        180, gt=0, description="A job unrenewed for so long may be taken over, seconds."
    )
    lease_renew_seconds: float = Field(
        30,
        gt=0,
        description="Time between two renewals, seconds; at most half of LEASE_TERM_SECONDS.",
    )

    @field_validator(
        "webhook_allowed_hosts",
        "image_allowed_buckets",
        "image_allowed_hosts",
        "job_retry_seconds",
        "webhook_retry_seconds",
        mode="before",
    )
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _production_is_strict(self) -> "Settings":
        problems = []
        if self.lease_renew_seconds * 2 > self.lease_term_seconds:
            problems.append(
                "LEASE_RENEW_SECONDS must be at most half of LEASE_TERM_SECONDS, so that one "
                "failed renewal does not lose the job"
            )
        if self.pack_slots > 1 and self.gpus_per_trainer > 1:
            problems.append(
                "PACK_SLOTS and GPUS_PER_TRAINER cannot both be more than 1: several jobs share "
                "one GPU, or one job has several"
            )
        if self.environment == "production":
            if not self.internal_api_token:
                problems.append("INTERNAL_API_TOKEN is missing; set it to the backend's token")
            if not self.webhook_allowed_hosts:
                problems.append(
                    "WEBHOOK_ALLOWED_HOSTS is missing; name the backends' hosts, or every job with "
                    "a webhook_url is refused and nobody is told"
                )
            if self.webhook_base_url and not self.webhook_base_url.startswith("https://"):
                problems.append("WEBHOOK_BASE_URL must start with https:// in production")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def broker_url(self) -> str:
        """The AMQP address, password included: never log it."""
        if self.rabbitmq_url is not None:
            return self.rabbitmq_url.get_secret_value()
        user, password = quote(self.rabbitmq_user, safe=""), self.rabbitmq_password
        secret = quote(password.get_secret_value(), safe="")
        vhost = quote(self.rabbitmq_vhost, safe="")
        return f"amqp://{user}:{secret}@{self.rabbitmq_host}:{self.rabbitmq_port}/{vhost}"

    @property
    def secret_values(self) -> tuple[str, ...]:
        """Every secret in these settings and in those of the libraries, for redaction."""
        secrets = (
            self.rabbitmq_url,
            self.rabbitmq_password,
            self.internal_api_token,
            self.webhook_signing_secret,
        )
        values = [s.get_secret_value() for s in secrets if s is not None]
        values += [unquote(urlsplit(self.broker_url).password or "")]
        values += [value.removeprefix("whsec_") for value in values]
        values += [os.environ.get(name, "") for name in SECRETS_OF_LIBRARIES]
        # The broker's usual "guest" is no secret, and redacting it would garble the log.
        return tuple(value for value in values if value and value != "guest")


def load_settings(**overrides: Any) -> Settings:
    """The settings of this environment.

    Raises:
        SettingsError: a sentence for every variable that is missing or wrong.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError([s for d in error.errors() for s in _sentences(d)]) from None


def _sentences(detail: Any) -> list[str]:
    text = str(detail["msg"]).removeprefix("Value error, ")
    if not detail["loc"]:
        return text.split("\n")
    variable = str(detail["loc"][0]).upper()
    return [f"{variable} is not valid: {text[0].lower()}{text[1:]}"]
