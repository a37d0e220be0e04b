"""Does the drawing model draw what it is told? `python -m benchmarks.drawing`.

Samples of prompts such as "a red circle on a white background", from the weights that come with the
package, each looked at by the classifier. The last line is one JSON object.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import torch

from worker.demo.classifier import classify
from worker.demo.drawing_base import (
    DRAWING_MODEL,
    GUIDANCE,
    STEPS,
    load_drawing_model,
    plain_prompts,
    sample,
    sheet,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the prompts and of the noise")
    parser.add_argument("--model", type=Path, default=DRAWING_MODEL)
    parser.add_argument("--sheet", type=Path, help="PNG file for the samples, wrong ones last")
    arguments = parser.parse_args()
    started = time.monotonic()
    prompts = plain_prompts(arguments.samples, arguments.seed)
    pictures = sample(
        load_drawing_model(arguments.model),
        [prompt for prompt, *_ in prompts],
        seed=10_000 + arguments.seed,
    )
    right: Counter[str] = Counter()
    good, wrong = [], []
    for picture, (prompt, shape, colour, background) in zip(pictures, prompts, strict=True):
        seen = classify(picture)
        agrees = {
            "shape": seen.shape == shape,
            "colour": seen.colour == colour,
            "background": seen.background == background,
        }
        agrees["all"] = all(agrees.values())
        right.update(name for name, yes in agrees.items() if yes)
        (good if agrees["all"] else wrong).append(picture)
        if not agrees["all"]:
            print(f"{prompt}: {seen.colour} {seen.shape} on {seen.background}")
    if arguments.sheet:
        sheet([*good, *wrong], 20).save(arguments.sheet)
    figures = {
        "samples": len(prompts),
        **{name: round(right[name] / len(prompts), 3) for name in ("all", "shape", "colour")},
        "background": round(right["background"] / len(prompts), 3),
        "steps": STEPS,
        "guidance": GUIDANCE,
        "threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
