"""Make the drawing model: `python -m worker.demo.from_scratch --work DIR`.

First the autoencoder, then text encoder and UNet, then the files of the pipeline in half precision.
It goes on where it was stopped: everything is kept in the work folder. About an hour and a half
on one core of a server with bfloat16 arithmetic (AMX); log lines say what is left.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from worker.demo.drawing_base import DRAWING_MODEL
from worker.demo.from_scratch.autoencoder import train_autoencoder
from worker.demo.from_scratch.painter import assemble, train_painter

#: Optimizer steps of the stages.
AUTOENCODER_STEPS, PAINTER_STEPS = 2_600, 8_500


def main() -> int:
    """Do it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is on the way")
    parser.add_argument("--output", type=Path, help="folder of the pipeline; WORK/model by default")
    parser.add_argument("--autoencoder-steps", type=int, default=AUTOENCODER_STEPS)
    parser.add_argument("--painter-steps", type=int, default=PAINTER_STEPS)
    parser.add_argument("--threads", type=int, help="torch's threads; all cores by default")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    vae = _autoencoder(work, arguments.autoencoder_steps)
    words, text, unet = train_painter(vae, work, arguments.painter_steps, _say)
    pipeline = assemble(vae, words, text, unet)
    output = arguments.output or work / "model"
    pipeline.to(dtype=torch.float16).save_pretrained(output, safe_serialization=True)
    for name in ("README.md", "LICENSE"):
        if not (output / name).exists():
            shutil.copyfile(DRAWING_MODEL / name, output / name)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    _say(f"{output}: {size / 1e6:.2f} MB")
    return 0


def _autoencoder(work: Path, steps: int) -> Any:
    """The finished one; trained if it is not there yet."""
    folder = work / "vae"
    if not folder.exists():
        train_autoencoder(work, steps, _say).save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder).eval()


def _say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
