"""diffusers' script where it is not at hand: its loop as the parity test has it, as a program.

`python -m benchmarks.transcription SIZE FOLDER STEPS PRECISION`, as `benchmarks.observation` does.
"""

import sys
from pathlib import Path

from diffusers import StableDiffusionPipeline
from peft.utils import get_peft_model_state_dict

from benchmarks.loops import PeerLoop
from benchmarks.workload import Workload


def main() -> None:
    size, folder, steps, precision = sys.argv[1:]
    workload = Workload(size, Path(folder), int(steps), precision)  # type: ignore[arg-type]
    loop = PeerLoop(workload)
    for _ in range(workload.steps):
        loop.step()
    StableDiffusionPipeline.save_lora_weights(
        workload.folder / "peer" / "out", unet_lora_layers=get_peft_model_state_dict(loop.unet)
    )


if __name__ == "__main__":
    main()
