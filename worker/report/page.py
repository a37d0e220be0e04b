"""`report.html`: what became of a job, on one page that needs nothing but itself."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from worker.contract.dataset import PictureReport, counts
from worker.contract.manifest import METRICS_FILE, Manifest, Preview
from worker.report.chart import Chart, Point, line_chart, smoothed, thinned
from worker.report.embedded import fitting_pictures, thumbnails
from worker.report.outcome import (
    duration,
    outcome,
    pictures_trained_on,
    size,
    size_of_training,
)
from worker.report.snippets import snippets

#: Bytes of the page that pictures may take; the rest of it is some tens of kilobytes.
_PREVIEW_BYTES, _THUMBNAIL_BYTES = 1_600_000, 900_000

#: Pictures in the contact sheet at most; a thousand rows of text are more than a person reads.
_PICTURES = 400

#: Pictures of the class that are shown.
_CLASS_PICTURES = 12

#: Sizes of a chart for a wide screen and for a phone, pixels: text keeps its size.
_WIDE, _NARROW = (500.0, 240.0), (340.0, 210.0)

#: Warnings in words.
_REMARKS = {
    "duplicate": "the same as another",
    "near_duplicate": "much like another",
    "upscaled": "smaller than it is trained at",
    "blurred": "blurred",
    "caption_too_long": "caption cut off",
    "no_caption": "no caption",
}

_page = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
).get_template("report.html.j2")


@dataclass(frozen=True)
class _Strip:
    """A preview with its pictures as data URIs: before, along the way by step, after."""

    preview: Preview
    before: str
    along: tuple[tuple[int, str], ...]
    after: str


@dataclass(frozen=True)
class _Shown:
    """A picture of the contact sheet."""

    row: PictureReport
    name: str
    thumbnail: str | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Curve:
    """A chart in both sizes."""

    title: str
    says: str
    sizes: tuple[tuple[str, Chart], ...]


def report_page(manifest: Manifest, folder: Path, thumbnail_folder: Path) -> str:
    """The page as HTML. All that a message said is escaped, and no script may run in it.

    Args:
        manifest: of the job.
        folder: where its previews and its metrics lie, under the names of the manifest.
        thumbnail_folder: where the small pictures lie that the rows of the dataset name.
    """
    return _page.render(
        manifest=manifest,
        facts=manifest.metadata,
        title=manifest.trigger_word or f"Style {manifest.style_id}",
        outcome=outcome(manifest),
        training=size_of_training(manifest),
        tiles=_tiles(manifest),
        strips=_strips(manifest, folder),
        along=any(preview.along for preview in manifest.previews),
        curves=_curves(folder / METRICS_FILE),
        pictures=_pictures(manifest.dataset[:_PICTURES], thumbnail_folder),
        pictures_in_all=len(manifest.dataset),
        counts=_counts(manifest),
        class_pictures=_class_pictures(manifest, thumbnail_folder),
        class_counts=_class_counts(manifest),
        snippets=snippets(manifest),
        stages=_stages(manifest.stage_seconds),
        machine=_machine(manifest),
        parameters=_settings(manifest),
        again=_again(manifest),
    )


def _tiles(manifest: Manifest) -> list[tuple[str, str]]:
    facts = manifest.metadata
    tiles = [
        ("pictures", pictures_trained_on(manifest)),
        ("steps", f"{facts.get('training_steps', 0):,}"),
        ("rank · alpha", f"{facts.get('lora_rank')} · {facts.get('lora_alpha', 0):g}"),
        ("resolution", f"{facts.get('resolution')} px"),
    ]
    if speed := facts.get("steps_per_second"):
        tiles.append(("steps a second", f"{speed:.3g}"))
    if manifest.memory.peak:
        shared = "packing" in facts
        label = "GPU memory of its trainer" if shared else "GPU memory"
        tiles.append((label, size(manifest.memory.peak)))
    return tiles


def _strips(manifest: Manifest, folder: Path) -> list[_Strip]:
    names = [name for preview in manifest.previews for name in preview.files]
    uris = iter(fitting_pictures([folder / name for name in names], _PREVIEW_BYTES))
    return [
        _Strip(
            preview,
            before=next(uris),
            along=tuple((picture.step, next(uris)) for picture in preview.along),
            after=next(uris),
        )
        for preview in manifest.previews
    ]


def _curves(metrics: Path) -> list[_Curve]:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = thinned([row["loss"] for row in rows if "loss" in row])
    seen = [
        (row["step"], row["validation_loss"])
        for row in rows
        if math.isfinite(row.get("validation_loss", math.nan))
    ]
    found = [
        _curve(
            "Training loss, by step",
            "Each step has other pictures and other noise, so it scatters more than it falls; the "
            "strong line is its moving average.",
            [("each step", losses), ("moving average", smoothed(losses))],
        ),
        _curve(
            "Loss at fixed noise, by step",
            "Always the same pictures with the same noise, so it can be compared from step to "
            "step.",
            [("fixed noise", seen)],
            dotted=True,
        ),
    ]
    return [curve for curve in found if curve]


def _curve(
    title: str, says: str, curves: Sequence[tuple[str, Sequence[Point]]], *, dotted: bool = False
) -> _Curve | None:
    charts = []
    for name, (width, height) in (("wide", _WIDE), ("narrow", _NARROW)):
        chart = line_chart(curves, width=width, height=height, dotted=dotted)
        if chart is None:
            return None
        charts.append((name, chart))
    return _Curve(title, says, tuple(charts))


def _pictures(rows: Sequence[PictureReport], folder: Path) -> list[_Shown]:
    paths = [folder / row.thumbnail if row.thumbnail else None for row in rows]
    return [
        _Shown(row, row.source.rsplit("/", 1)[-1], uri, _remarks(row))
        for row, uri in zip(rows, thumbnails(paths, _THUMBNAIL_BYTES), strict=True)
    ]


def _class_pictures(manifest: Manifest, folder: Path) -> list[_Shown]:
    """A few of them: they are not what the job is about."""
    used = [row for row in manifest.class_pictures if row.reason is None]
    return _pictures(used[:_CLASS_PICTURES], folder)


def _class_counts(manifest: Manifest) -> str:
    """What was done with pictures of the class."""
    count = sum(row.reason is None for row in manifest.class_pictures)
    pictures = f"{count} picture{'' if count == 1 else 's'}"
    whose = "drawn by the base model" if manifest.class_pictures_made else "sent with the job"
    weight = manifest.parameters.get("prior_loss_weight", 1.0)
    shown = f" Here are {_CLASS_PICTURES} of them." if count > _CLASS_PICTURES else ""
    return (
        f"{pictures} {whose}, trained beside the others with weight {weight:g}, so that the base "
        f"keeps what it knows of the class.{shown}"
    )


def _remarks(row: PictureReport) -> tuple[str, ...]:
    if row.reason:
        return (f"left out: {row.reason}",)
    said = []
    for warning in row.warnings:
        text = _REMARKS[warning]
        if row.duplicate_of is not None and warning in ("duplicate", "near_duplicate"):
            text = text.replace("another", f"number {row.duplicate_of + 1}")
        said.append(text)
    return tuple(said)


def _counts(manifest: Manifest) -> str:
    """How many were used, and what there is to look at."""
    found = counts(manifest.dataset)
    text = f"{found['used']} of {found['pictures']} pictures were used"
    if not found["left_out"]:
        text = f"All {found['pictures']} pictures were used"
    warned = [f"{found[name]} × {words}" for name, words in _REMARKS.items() if found.get(name)]
    return f"{text}. " + (f"To look at: {', '.join(warned)}." if warned else "Nothing to remark.")


def _stages(seconds: dict[str, float]) -> list[tuple[str, str, float]]:
    """Name, duration, and its share of the longest."""
    longest = max(seconds.values(), default=0) or 1
    return [(name, duration(value), 100 * value / longest) for name, value in seconds.items()]


def _machine(manifest: Manifest) -> list[tuple[str, str]]:
    facts, memory = manifest.metadata, manifest.memory
    rows = dict(manifest.environment) | manifest.versions
    rows.setdefault("device", str(facts.get("device")))
    if memory.peak:
        rows["GPU memory, peak"] = size(memory.peak)
        rows["GPU memory, reserved at the end"] = size(memory.reserved)
    return list(rows.items())


def _again(manifest: Manifest) -> str:
    """What comes out when the manifest is trained again, by itself and in one piece."""
    facts, because = manifest.metadata, []
    if facts.get("packing", {}).get("mean_company", 1.0) > 1:
        because.append("it shared passes with other jobs")
    if facts.get("resumed_exactly") is False:
        why = facts.get("resumed_inexactly_because")
        which = f" ({why})" if why else ""
        because.append(f"it did not go on exactly as it was when it was interrupted{which}")
    if not because:
        return (
            "With the manifest beside this page, on the same kind of machine, the same file comes "
            "out, bit for bit."
        )
    return (
        "The manifest beside this page trains it again, but the file differs by rounding, because "
        f"{' and '.join(because)}."
    )


def _settings(manifest: Manifest) -> list[tuple[str, str]]:
    return [(name, _plain(value)) for name, value in sorted(manifest.parameters.items())]


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "–"
    return f"{value:g}" if isinstance(value, float) else str(value)
