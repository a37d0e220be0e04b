"""`README.md` as the model hub reads it: what diffusers' training scripts write, filled in."""

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCardData

from worker.contract.manifest import Manifest
from worker.report.outcome import outcome, pictures_trained_on, size_of_training
from worker.report.snippets import KOHYA_FILE, diffusers_snippet, kohya_readers

#: Tags that diffusers' own script for LoRA adapters writes, of each family.
_FAMILY_TAGS = {
    "sd1": ("stable-diffusion", "stable-diffusion-diffusers"),
    "sd2": ("stable-diffusion", "stable-diffusion-diffusers"),
    "sdxl": ("stable-diffusion-xl", "stable-diffusion-xl-diffusers"),
    "sd3": ("sd3", "sd3-diffusers"),
}
_TAGS = ("text-to-image", "diffusers", "diffusers-training", "lora", "template:sd-lora")


def model_card(manifest: Manifest) -> str:
    """The card: YAML for the hub, then Markdown for a person. Nothing is looked up on the hub."""
    return f"---\n{_data(manifest).to_yaml()}\n---\n\n{_body(manifest)}"


def _data(manifest: Manifest) -> Any:
    base = manifest.base_model
    widget = [
        {"text": _line(preview.prompt) or " ", "output": {"url": preview.after}}
        for preview in manifest.previews
    ]
    return ModelCardData(
        base_model=base.hub_id or base.name,
        library_name="diffusers",
        license=base.license or "other",
        instance_prompt=_line(manifest.trigger_word or "") or None,
        tags=[*_FAMILY_TAGS.get(base.family, ()), *_TAGS],
        widget=widget or None,
        inference=True,
    )


def _body(manifest: Manifest) -> str:
    facts = manifest.metadata
    title = manifest.trigger_word or f"style {manifest.style_id}"
    parts = [
        f"# LoRA adapter: {_inline_code(title)}",
        f"A low-rank adapter for {_inline_code(manifest.base_model.name)}, "
        f"{size_of_training(manifest)}. {outcome(manifest)}",
    ]
    if manifest.previews:
        parts.append("![Before and after](previews/grid.png)")
    if manifest.trigger_word:
        parts += ["## Trigger word", f"Write {_inline_code(manifest.trigger_word)} in the prompt."]
    snippet = diffusers_snippet(manifest)
    parts += [
        "## Use it with diffusers",
        _fenced("python", snippet.code),
        f"For {' and '.join(kohya_readers(manifest))} there is {_inline_code(KOHYA_FILE)}, "
        "to be used at strength 1.",
        "## Training",
        _table(
            [
                ("rank, alpha", f"{facts.get('lora_rank')}, {facts.get('lora_alpha')}"),
                ("learning rate", facts.get("learning_rate")),
                ("steps", facts.get("training_steps")),
                ("pictures", pictures_trained_on(manifest)),
                ("resolution", facts.get("resolution")),
                ("precision", facts.get("mixed_precision")),
                ("seed", manifest.seed),
            ]
        ),
        "Everything else, with the hash of every input: `manifest.json`; "
        "`lora-worker reproduce manifest.json` trains it again and compares.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _line(text: str) -> str:
    """`text` on one line: a line of dashes would end the card's YAML."""
    return " ".join(text.split())


def _inline_code(text: str) -> str:
    """`text` as it is, whatever Markdown it may look like."""
    line = _line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    room = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{room}{line}{room}{fence}"


def _fenced(language: str, code: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"
