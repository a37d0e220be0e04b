"""How is the adapter used? The lines for diffusers, ComfyUI and A1111, at the trained strength."""

from dataclasses import dataclass

from worker.contract.manifest import Manifest

#: The adapter's files, as the trainer names them.
DIFFUSERS_FILE = "lora_weights.safetensors"
KOHYA_FILE = "lora_weights.kohya.safetensors"


@dataclass(frozen=True)
class Snippet:
    """One way to use it.

    Attributes:
        file: what is downloaded. place: the path that it is saved under, if there is a usual one.
        steps: what is done with it. code: what is typed at last: a program, or else a prompt.
    """

    program: str
    file: str
    steps: tuple[str, ...]
    code: str
    place: str | None = None
    is_program: bool = False


def snippets(manifest: Manifest) -> tuple[Snippet, ...]:
    """One for each program that reads the adapter."""
    of_kohya = {"ComfyUI": _comfyui, "AUTOMATIC1111": _a1111}
    readers = kohya_readers(manifest)
    return (diffusers_snippet(manifest), *(of_kohya[name](manifest) for name in readers))


def kohya_readers(manifest: Manifest) -> tuple[str, ...]:
    """The programs that read the kohya file of an adapter for this base model."""
    if manifest.base_model.family == "sd3":
        return ("ComfyUI",)
    return ("ComfyUI", "AUTOMATIC1111")


def example_prompt(manifest: Manifest) -> str:
    """A prompt that the adapter was made for."""
    if manifest.previews:
        return manifest.previews[0].prompt
    caption = next((picture.caption for picture in manifest.inputs if picture.caption), "")
    return caption or manifest.trigger_word or ""


def diffusers_snippet(manifest: Manifest) -> Snippet:
    """Python, with the base that it was trained on."""
    base = manifest.base_model
    options = "".join(
        f", {name}={value!r}"
        for name, value in (("revision", base.revision), ("variant", base.variant))
        if value and base.hub_id
    )
    code = (
        "import torch\n"
        "from diffusers import DiffusionPipeline\n\n"
        "pipeline = DiffusionPipeline.from_pretrained(\n"
        f"    {base.hub_id or f'path/to/{base.name}'!r}, torch_dtype=torch.float16{options}\n"
        ').to("cuda")\n'
        f'pipeline.load_lora_weights("{DIFFUSERS_FILE}")\n'
        f"image = pipeline({example_prompt(manifest)!r}).images[0]\n"
        'image.save("picture.png")'
    )
    steps = ("Rank and alpha are in the file: it loads at the strength that was trained.",)
    return Snippet("diffusers", DIFFUSERS_FILE, steps, code, is_program=True)


def _comfyui(manifest: Manifest) -> Snippet:
    name = f"style_{manifest.style_id}.safetensors"
    steps = (
        f"Put a Load LoRA node behind Load Checkpoint ({manifest.base_model.name}), choose {name}, "
        "and set strength_model to 1.",
        "Write the prompt:",
    )
    place = f"ComfyUI/models/loras/{name}"
    return Snippet("ComfyUI", KOHYA_FILE, steps, example_prompt(manifest), place)


def _a1111(manifest: Manifest) -> Snippet:
    name = f"style_{manifest.style_id}"
    place = f"stable-diffusion-webui/models/Lora/{name}.safetensors"
    steps = (f"Choose the checkpoint {manifest.base_model.name} and write the prompt:",)
    code = f"{example_prompt(manifest)} <lora:{name}:1>"
    return Snippet("AUTOMATIC1111", KOHYA_FILE, steps, code, place)
