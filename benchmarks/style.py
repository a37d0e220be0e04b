"""Does a job teach the drawing model a style? `python -m benchmarks.style [--demo demo-output]`.

Takes the adapter of a demo that has run (or runs the demo first), draws samples of the style's
prompts without it and with it, and measures how far they moved towards the training pictures, and
whether the prompted shapes are still there. The last line is one JSON object.
"""

import argparse
import json
from pathlib import Path

from worker.demo.backend import MODEL_FOLDER
from worker.demo.drawing_base import sheet
from worker.demo.learned import measure
from worker.demo.run import run_demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo-output"), help="a demo's folder")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=50_000, help="of the noise")
    parser.add_argument("--sheet", type=Path, help="PNG file for the samples")
    arguments = parser.parse_args()
    adapter = arguments.demo / "lora_weights.safetensors"
    if not adapter.exists() and run_demo(arguments.demo):
        raise SystemExit("the demo failed")
    learned = measure(
        arguments.demo / MODEL_FOLDER,
        adapter,
        sorted((arguments.demo / "pictures").glob("*.png")),
        arguments.samples,
        seed=arguments.seed,
    )
    if arguments.sheet:
        sheet([*learned.before, *learned.after], 20).save(arguments.sheet)
    print(json.dumps(learned.figures()))


if __name__ == "__main__":
    main()
