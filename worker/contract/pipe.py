"""What supervisor and trainer say to each other: a JSON object a line, commands down, events up."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from worker.contract.base_model import BaseModelEntry
from worker.contract.dataset import CaptionSource
from worker.contract.errors import ErrorCode
from worker.contract.parameters import TrainingParameters

#: Exit status of a trainer that was asked to stop and left a checkpoint (sysexits' EX_TEMPFAIL).
EXIT_CHECKPOINTED = 75

#: The stages of a job, in order; the trainer reports those from caching to exporting. Where jobs
#: share a trainer, one waits before caching or training until it fits beside the others.
Stage = Literal[
    "preparing",
    "downloading",
    "caching",
    "waiting",
    "training",
    "exporting",
    "uploading",
    "committed",
]


#: How steps reach the GPU: `eager` one kernel at a time, `graph` recorded once as a CUDA graph,
#: `compile` with the repeated blocks compiled; `auto` records jobs that are long enough.
StepLaunch = Literal["auto", "eager", "graph", "compile"]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def line(self) -> bytes:
        """This message as one line of UTF-8 JSON, newline included."""
        return self.model_dump_json().encode() + b"\n"


class ImageFile(_Line):
    """One downloaded picture: its place in the message, where it lies, and what it shows."""

    index: int
    path: str
    source: str
    caption: str = ""
    caption_source: CaptionSource = "none"


class TrainCommand(_Line):
    """Train this. All paths are local; the trainer has no credentials and needs none.

    Attributes:
        trainers_per_gpu: trainers that share each GPU's memory.
        class_images: pictures of the class, for prior preservation; where there are none and the
            parameters want it, the base model draws them.
        alone: not to be trained in one pass with other jobs.
        claim: how many times the job was taken up, this time included.
        earlier_seconds: the stages that have ended already; for the job's report.
    """

    type: Literal["train"] = "train"
    job_id: str
    style_id: int
    parameters: TrainingParameters
    seed: int
    base_model: BaseModelEntry
    images: list[ImageFile]
    class_images: list[ImageFile] = []
    output_dir: str
    checkpoint_dir: str
    resume_from: str | None = None
    trigger_word: str | None = None
    allow_hub: bool = False
    launch: StepLaunch = "auto"
    compile_cache_dir: str | None = None
    trainers_per_gpu: int = 1
    alone: bool = False
    claim: int = 1
    earlier_seconds: dict[str, float] = {}


class StopCommand(_Line):
    """Finish the step and stop: `drain` leaves a checkpoint, `cancel` leaves nothing.

    Attributes:
        job_id: the one job that is meant; None for all that run.
    """

    type: Literal["stop"] = "stop"
    reason: Literal["drain", "cancel", "time_limit"]
    job_id: str | None = None


class _Event(_Line):
    """What a trainer says. `job_id` is the job that it is about; None if about none."""

    job_id: str | None = None


class MemoryReport(_Line):
    """GPU memory in bytes; all 0 on a machine without one.

    `peak` is since the job began; where jobs share a trainer, since the first of them did.
    """

    allocated: int = 0
    reserved: int = 0
    peak: int = 0


class ReadyEvent(_Line):
    """The trainer has imported its libraries and waits for a job.

    Attributes:
        slots: jobs that it trains at a time.
    """

    type: Literal["ready"] = "ready"
    pid: int
    device: str
    device_name: str
    device_memory_bytes: int
    versions: dict[str, str]
    slots: int = 1


class StageEvent(_Event):
    """A stage began or ended."""

    type: Literal["stage"] = "stage"
    stage: Stage
    status: Literal["started", "ended"]
    seconds: float = 0.0
    memory: MemoryReport = MemoryReport()
    fields: dict[str, Any] = {}


class StepEvent(_Event):
    """How far the training is, at most about once a second and once at the end.

    Attributes:
        step: optimizer steps done. total_steps: steps in all.
        epoch: passes begun, 1-based. total_epochs: passes in all.
        loss: mean over the steps since the last such event.
        estimated_seconds: time left in training, from measured step times.
    """

    type: Literal["step"] = "step"
    step: int
    total_steps: int
    epoch: int
    total_epochs: int
    loss: float
    learning_rate: float
    step_seconds: float
    estimated_seconds: float


class CheckpointEvent(_Event):
    """A whole checkpoint lies at `path`; the one before it may be deleted by the trainer after."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str


class OutputFile(_Line):
    """One finished file: its name under the output prefix, size in bytes, hex digest."""

    name: str
    path: str
    bytes: int
    sha256: str
    content_type: str = "application/octet-stream"


class FinishedEvent(_Event):
    """The adapter is trained, exported and verified by reloading."""

    type: Literal["finished"] = "finished"
    files: list[OutputFile]
    steps: int
    epochs: int
    loss: float
    metadata: dict[str, Any]


class StoppedEvent(_Event):
    """The trainer did as a StopCommand or SIGTERM said."""

    type: Literal["stopped"] = "stopped"
    reason: Literal["drain", "cancel", "time_limit"]
    step: int
    checkpoint: str | None = None


class FailedEvent(_Event):
    """The job failed in the trainer. `message` is for the sender, `detail` for the log."""

    type: Literal["failed"] = "failed"
    code: ErrorCode
    message: str
    transient: bool = False
    detail: str = ""


class LogEvent(_Event):
    """A log line of the trainer; the supervisor writes it with the job bound to it."""

    type: Literal["log"] = "log"
    level: Literal["debug", "info", "warning", "error"] = "info"
    event: str
    fields: dict[str, Any] = {}


Command = Annotated[TrainCommand | StopCommand, Field(discriminator="type")]
Event = Annotated[
    ReadyEvent
    | StageEvent
    | StepEvent
    | CheckpointEvent
    | FinishedEvent
    | StoppedEvent
    | FailedEvent
    | LogEvent,
    Field(discriminator="type"),
]

_commands: TypeAdapter[Command] = TypeAdapter(Command)
_events: TypeAdapter[Event] = TypeAdapter(Event)


def parse_command(line: bytes | str) -> Command:
    """One line from the supervisor. Raises `pydantic.ValidationError` if it is not a command."""
    return _commands.validate_json(line)


def parse_event(line: bytes | str) -> Event:
    """One line from a trainer. Raises `pydantic.ValidationError` if it is not an event."""
    return _events.validate_json(line)
