"""Files of one JSON value a line, read while others write to them."""

import json
from pathlib import Path
from typing import Any


def json_lines(path: Path) -> list[Any]:
    """Values of the lines that are there whole; what comes after the last line's end is not yet.

    A reader can see the first half of what another process has handed over in one call: a file
    grows page by page.
    """
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line]
