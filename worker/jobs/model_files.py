"""Are a base model's files here, all of them, and are they the right ones? Looked up by name alone.

The trainer loads them; this finds out before a job does, without importing anything heavy.
"""

import hashlib
import json
import os
import re
from pathlib import Path

from worker.contract.base_model import BaseModelEntry

#: Parts of a model whose folder has no `model_index.json`; those that have weights.
_PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
_WEIGHTED = ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "unet", "vae")

#: Parts of a pipeline that no training needs, and those that are used where they are there.
_NOT_NEEDED = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
_OPTIONAL = frozenset({"text_encoder_3", "tokenizer_3"})


def folder_of(entry: BaseModelEntry) -> Path | None:
    """Where the files lie: the folder itself, or the hub's cache; None if there are none."""
    folder = Path(entry.location)
    if folder.is_dir():
        return folder
    cached = hub_cache() / f"models--{entry.location.replace('/', '--')}"
    revision = entry.revision or "main"
    reference = cached / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = cached / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def hub_cache() -> Path:
    """The hub's cache, where its own variables say."""
    home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def missing(entry: BaseModelEntry, folder: Path) -> list[str]:
    """What is not there of a model in diffusers' layout, one clause each."""
    found = []
    for part in _parts(folder):
        place = folder / part
        if not place.is_dir():
            if part in _OPTIONAL:
                continue
            found.append(f"{part}/ is missing")
        elif part in _WEIGHTED and not _weights(place, entry.variant):
            kind = f"*.{entry.variant}.safetensors" if entry.variant else "*.safetensors"
            found.append(f"{part}/{kind} is missing")
    return found


def weight_bytes(entry: BaseModelEntry, folder: Path) -> int:
    """Size of all weights that would be loaded."""
    return sum(
        file.stat().st_size
        for part in _parts(folder)
        for file in _weights(folder / part, entry.variant)
    )


def digest(entry: BaseModelEntry, folder: Path) -> str:
    """`sha256:…` over the weights' names and contents; reads every byte of them."""
    whole = hashlib.sha256()
    for part in sorted(_parts(folder)):
        for file in sorted(_weights(folder / part, entry.variant)):
            with file.open("rb") as opened:
                of_file = hashlib.file_digest(opened, "sha256").hexdigest()
            whole.update(f"{part}/{file.name} {of_file}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def pull(entry: BaseModelEntry) -> Path:
    """Fetch a model's files from the hub into its cache: no pickles, no code.

    Raises:
        OSError, ValueError: the hub does not answer, or there is no such model or revision.
    """
    # Only this verb goes to the hub; the worker does not pay for its client.
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    weights = f"*/*.{entry.variant}*.safetensors" if entry.variant else "*/*.safetensors"
    patterns = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", weights]
    return Path(
        snapshot_download(
            entry.location,
            revision=entry.revision,
            allow_patterns=patterns,
            ignore_patterns=[f"{part}/*" for part in sorted(_NOT_NEEDED)],
        )
    )


def _parts(folder: Path) -> list[str]:
    index = folder / "model_index.json"
    if not index.is_file():
        return list(_PARTS)
    try:
        parts = json.loads(index.read_text(encoding="utf-8")).items()
    except ValueError:
        return list(_PARTS)
    return [
        name
        for name, value in parts
        if isinstance(value, list) and value[0] and name not in _NOT_NEEDED
    ]


def _weights(place: Path, variant: str | None) -> list[Path]:
    every = place.glob("*.safetensors")
    if variant is None:
        return sorted(file for file in every if file.name.count(".") == 1)
    of_variant = re.compile(rf"\.{re.escape(variant)}[.-]")
    return sorted(file for file in every if of_variant.search(file.name))
