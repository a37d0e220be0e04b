"""Train a finished job again from its manifest, and say whether the same adapter comes out."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.contract.dataset import PictureReport
from worker.contract.job import TrainingJob
from worker.contract.manifest import MANIFEST_FILE, BaseModelName, Manifest, TrainedPicture
from worker.contract.pipe import FinishedEvent
from worker.storage.images import FetchedImage, ImageFetcher

#: What of a plan the bits of an adapter depend on.
_PLAN = ("micro_batch", "compiled", "recorded")


class PicturesDiffer(Exception):  # noqa: N818 - a finding, not a malfunction
    """The pictures are not those of the manifest; `problems` has half a sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Comparison:
    """How two trainings of one manifest compare.

    Attributes:
        different: names of adapter files that are not the same, or are in one of them alone.
        same: names of adapter files that are.
        because: what else was not the same: versions, device, plan, base model.
    """

    different: tuple[str, ...]
    same: tuple[str, ...]
    because: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether every adapter file is the same, bit for bit."""
        return bool(self.same) and not self.different

    def sentence(self) -> str:
        """What was found, for a person."""
        if self.agrees:
            return f"reproduced: {' and '.join(self.same)} agree with the manifest, bit for bit"
        found = f"not reproduced: {' and '.join(self.different) or 'nothing'} differ"
        if self.because:
            return f"{found}; not the same as then: {'; '.join(self.because)}"
        return f"{found}, although versions, device and plan are the same"


def pictures_sent(manifest: Manifest) -> list[TrainedPicture | PictureReport]:
    """What was trained on and came with the message: the job's pictures, then those of the class.

    Pictures of the class that the base model drew are drawn again.
    """
    if manifest.class_pictures_made:
        return list(manifest.inputs)
    return [*manifest.inputs, *(row for row in manifest.class_pictures if row.reason is None)]


def pictures_by_hash(manifest: Manifest, folder: Path) -> list[Path]:
    """The pictures of `pictures_sent` in a folder and those below it, whatever their names.

    Raises:
        PicturesDiffer: some are not there.
    """
    sent = pictures_sent(manifest)
    wanted = {picture.sha256 for picture in sent}
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (digest := _sha256(path)) in wanted:
            found.setdefault(digest, path)
    missing = [
        f"{picture.source} (sha256 {picture.sha256[:12]}…) is not in {folder}"
        for picture in sent
        if picture.sha256 not in found
    ]
    if missing:
        raise PicturesDiffer(missing)
    return [found[picture.sha256] for picture in sent]


def pictures_by_source(manifest: Manifest, fetcher: ImageFetcher, folder: Path) -> list[Path]:
    """The pictures of `pictures_sent`, fetched to an existing folder from where they came.

    Raises:
        PicturesDiffer: some are not there any more, or are others now.
    """
    # A caption is given, so that none is looked for beside the picture.
    sent = pictures_sent(manifest)
    wanted = [(picture.source, picture.caption) for picture in sent]
    paths, problems = [], []
    for picture, item in zip(sent, fetcher.fetch(wanted, folder), strict=True):
        if not isinstance(item, FetchedImage):
            problems.append(f"{picture.source} {item.reason}")
        elif item.sha256 != picture.sha256:
            problems.append(_changed(picture, item.sha256))
        else:
            paths.append(item.path)
    if problems:
        raise PicturesDiffer(problems)
    return paths


def job_of(manifest: Manifest, pictures: list[Path]) -> TrainingJob:
    """The job that the manifest is of, on local copies of the pictures of `pictures_sent`.

    Raises:
        pydantic.ValidationError: this version does not know what it asks for.
    """
    images = [
        {"url": path.resolve().as_uri(), "caption": picture.caption}
        for picture, path in zip(pictures_sent(manifest), pictures, strict=True)
    ]
    count = len(manifest.inputs)
    return TrainingJob.model_validate(
        {
            "job_id": manifest.job_id,
            "style_id": manifest.style_id,
            "image_urls": images[:count],
            "class_images": images[count:],
            "trigger_word": manifest.trigger_word,
            "parameters": manifest.parameters
            | {"seed": manifest.seed, "base_model": manifest.base_model.name},
        }
    )


def compare(manifest: Manifest, ended: FinishedEvent, output: Path) -> Comparison:
    """Hold the adapter's files in `output` against the manifest's, and the circumstances."""
    before, now = _adapters(manifest.files), _adapters({f.name: f.sha256 for f in ended.files})
    again = Manifest.model_validate_json((output / MANIFEST_FILE).read_bytes())
    names = sorted(before.keys() | now.keys())
    return Comparison(
        different=tuple(name for name in names if before.get(name) != now.get(name)),
        same=tuple(name for name in names if before.get(name) == now.get(name)),
        because=_circumstances(manifest, again),
    )


def _adapters(files: Mapping[str, str]) -> dict[str, str]:
    return {name: sha256 for name, sha256 in files.items() if name.endswith(".safetensors")}


def _circumstances(before: Manifest, now: Manifest) -> tuple[str, ...]:
    def of(one: Manifest) -> dict[str, Any]:
        plan = one.metadata.get("plan", {})
        of_class = "".join(picture.sha256 for picture in one.class_pictures)
        return {**one.environment, **one.versions} | {
            "base model": _identity(one.base_model),
            "class pictures": hashlib.sha256(of_class.encode()).hexdigest()[:12],
            "precision": one.metadata.get("mixed_precision"),
            "jobs in a pass": one.metadata.get("packing", {}).get("mean_company", 1.0),
            **{name.replace("_", " "): plan.get(name) for name in _PLAN},
        }

    was, there_is = of(before), of(now)
    return tuple(
        f"{name} {there_is.get(name)} here, {was.get(name)} then"
        for name in {**was, **there_is}
        if was.get(name) != there_is.get(name)
    )


def _identity(base: BaseModelName) -> str:
    """Where the base came from, its revision and its variant, as far as a manifest says it."""
    location = base.hub_id or f"{base.name} (a folder)"
    revision = f"revision {base.revision}" if base.revision else ""
    variant = f"variant {base.variant}" if base.variant else ""
    return ", ".join(part for part in (location, revision, variant) if part)


def _changed(picture: TrainedPicture | PictureReport, sha256: str) -> str:
    return f"{picture.source} has changed (sha256 {sha256[:12]}…, then {picture.sha256[:12]}…)"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
