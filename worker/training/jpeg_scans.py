"""How often does a JPEG paint its picture over? Each scan costs time, and hardly any bytes."""

import mmap
import re
from pathlib import Path

#: Scans of a JPEG that are decoded. Programs write 10 or so; a file of a megabyte has room for ten
#: thousand, each of which goes over all of its pixels.
MAX_SCANS = 100

_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = b"\xd8", b"\xd9", b"\xda"

#: Where the data of a scan end: a marker that is neither a stuffed byte nor a restart.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")


def count_scans(path: str) -> int:
    """Scans of the first picture in a JPEG file, up to one more than `MAX_SCANS`.

    What follows its end is not looked at: a phone's video may.
    """
    with (
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        scans, position = 0, 0
        while scans <= MAX_SCANS and (found := _MARKER.search(data, position)):
            position = found.end()
            if found[1] == _END_OF_IMAGE:
                break
            if found[1] != _START_OF_IMAGE:
                position += int.from_bytes(data[position : position + 2], "big")
            scans += found[1] == _START_OF_SCAN
        return scans
