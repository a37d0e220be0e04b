"""What is trained in the benchmarks: a base model with random weights, pictures, and the rules."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fixtures.drawn_pictures import draw_pictures
from worker.contract.base_model import BaseModelEntry
from worker.contract.pipe import TrainCommand
from worker.demo.tiny_base_model import Size, make_base_model

#: Settings of diffusers' script that our jobs take over: alpha = rank, no dropout, no previews, no
#: clipping (the script means to clip, but its list of parameters is an exhausted iterator).
RANK = 16
LEARNING_RATE = 1e-4
SEED = 7

#: Pictures that are trained on.
PICTURES = 12

#: Pixels, steps in a process, and steps in a round of one process, by size.
RESOLUTION = {"tiny": 64, "medium": 256, "full": 512}
STEPS = {"tiny": 60, "medium": 30, "full": 6}
STEPS_IN_A_ROUND = {"tiny": 10, "medium": 3, "full": 1}


@dataclass(frozen=True)
class Workload:
    """One size of model on one set of pictures, in `folder`."""

    size: Size
    folder: Path
    steps: int
    precision: str = "no"

    @property
    def resolution(self) -> int:
        """Side of the pictures, pixels."""
        return RESOLUTION[self.size]

    @property
    def model(self) -> Path:
        """The base model's folder."""
        return self.folder / "model"

    @property
    def pictures(self) -> Path:
        """The folder with the pictures and their captions."""
        return self.folder / "pictures"

    def prepare(self) -> None:
        """Make the base model and the pictures."""
        make_base_model(self.model, size=self.size)
        drawn = draw_pictures(self.pictures, PICTURES)
        for sidecar in self.pictures.glob("*.txt"):
            sidecar.unlink()  # the script takes each file of the folder for a picture
        lines = [{"file_name": p.name, "text": caption(i)} for i, p in enumerate(drawn)]
        (self.pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def arguments(self) -> list[str]:
        """For a program of ours."""
        return [self.size, str(self.folder), str(self.steps), self.precision]

    def script_arguments(self, output: Path) -> list[str]:
        """The same training, for diffusers' `train_text_to_image_lora.py`."""
        options: dict[str, Any] = {
            "pretrained_model_name_or_path": self.model,
            "train_data_dir": self.pictures,
            "image_column": "image",
            "caption_column": "text",
            "resolution": self.resolution,
            "train_batch_size": 1,
            "max_train_steps": self.steps,
            "rank": RANK,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "seed": SEED,
            "mixed_precision": self.precision,
            "checkpointing_steps": 10**9,
            "output_dir": output,
        }
        pairs = [(f"--{name}", str(value)) for name, value in options.items()]
        return [*(part for pair in pairs for part in pair), "--center_crop"]

    def command(self, output: Path, **rules: Any) -> TrainCommand:
        """The same training, for our trainer."""
        for folder in (output / "out", output / "checkpoints"):
            folder.mkdir(parents=True, exist_ok=True)
        files = sorted(p for p in self.pictures.iterdir() if p.suffix != ".jsonl")
        return TrainCommand.model_validate(
            {
                "job_id": output.name,
                "style_id": 1,
                "parameters": {
                    "resolution": self.resolution,
                    "mixed_precision": self.precision,
                    "max_train_steps": self.steps,
                    "rank": RANK,
                    "lora_alpha": RANK,
                    "lora_dropout": 0,
                    "max_grad_norm": 0,
                    "validation_prompts": [],
                    "learning_rate": LEARNING_RATE,
                    **rules,
                },
                "seed": SEED,
                "base_model": BaseModelEntry(name=self.size, location=str(self.model)),
                "images": [
                    {"index": i, "path": str(p), "source": p.name, "caption": caption(i)}
                    for i, p in enumerate(files)
                ],
                "output_dir": str(output / "out"),
                "checkpoint_dir": str(output / "checkpoints"),
            }
        )


def caption(index: int) -> str:
    """The caption of a picture."""
    return f"a drawing of shape {index}"
