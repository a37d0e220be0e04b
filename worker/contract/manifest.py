"""What does a finished job say of itself? `manifest.json`: all that training it again needs."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from worker.contract.dataset import PictureReport
from worker.contract.pipe import MemoryReport

#: Name of the file that holds one.
MANIFEST_FILE = "manifest.json"

#: Name of the training's figures, one JSON object a line.
METRICS_FILE = "metrics.jsonl"

#: Name of the page for a person.
REPORT_FILE = "report.html"

#: Name of the model hub's card.
CARD_FILE = "README.md"

#: Folder of the previews, under the output prefix.
PREVIEWS = "previews"

#: All previews on one picture.
PREVIEW_SHEET = f"{PREVIEWS}/grid.png"


class TrainedPicture(BaseModel):
    """A picture that was trained on, in the order of the training."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    source: str
    sha256: str
    caption: str = ""
    width: int = 0
    height: int = 0


class BaseModelName(BaseModel):
    """Which base model, without where it lies.

    Attributes:
        hub_id: its id on the model hub, if it was named by it.
        license: the hub's identifier of its licence, if the operator says it.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    family: str = "sd1"
    revision: str | None = None
    variant: str | None = None
    hub_id: str | None = None
    license: str | None = None


class PreviewAt(BaseModel):
    """A picture drawn with the adapter as it was after `step` optimizer steps."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    step: int
    file: str


class Preview(BaseModel):
    """One prompt and seed, drawn without the adapter, along the way and with it: names of files."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: str
    seed: int
    before: str
    after: str
    along: tuple[PreviewAt, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """In the order of the training."""
        return (self.before, *(picture.file for picture in self.along), self.after)


class Manifest(BaseModel):
    """One finished job.

    Attributes:
        inputs: what was trained on, in order. dataset: a row for every picture of the message.
        class_pictures: with prior preservation, a row for each picture of the class.
        class_pictures_made: whether these were drawn by the base model, and are again when this is
            trained again.
        parameters: after defaults. plan and what was measured are in `metadata`.
        versions: of the libraries. environment: all that the adapter's bits depend on.
        stage_seconds: each stage that had ended when this was written.
        previews_left_out: why there are no previews, or fewer than were asked for.
        files: sha256 of every file beside this one, by name.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    job_id: str
    style_id: int
    trigger_word: str | None = None
    inputs: tuple[TrainedPicture, ...] = Field(min_length=1)
    dataset: tuple[PictureReport, ...] = ()
    class_pictures: tuple[PictureReport, ...] = ()
    class_pictures_made: bool = False
    parameters: dict[str, Any]
    seed: int
    base_model: BaseModelName
    metadata: dict[str, Any]
    versions: dict[str, str]
    environment: dict[str, str]
    stage_seconds: dict[str, float]
    memory: MemoryReport = MemoryReport()
    previews: tuple[Preview, ...] = ()
    previews_left_out: str | None = None
    files: dict[str, str]
