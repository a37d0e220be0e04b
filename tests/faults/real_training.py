"""Make a small base model and a picture: `python -m tests.faults.real_training FOLDER`.

Prints their two paths.
"""

import sys
from pathlib import Path

from tests.fixtures.drawn_pictures import draw_pictures
from worker.demo.tiny_base_model import make_base_model

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(make_base_model(folder / "model"))
    print(draw_pictures(folder / "pictures", 1)[0])
