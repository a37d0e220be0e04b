"""Fuzz the picture door: `python -m tests.fuzz.images [--count 5000] [--seed 0]`.

Prints one JSON line. The exit status is 0 if no file broke more than itself, hung, or took too much
memory. Time and memory are those of the process that decodes.
"""

import argparse
import os
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.fixtures.bad_pictures import gif_of_comments, jpeg_of_scans, png_of_chunks
from tests.fuzz.campaign import mutated, play
from worker.training.decoder import MEMORY_BYTES
from worker.training.decoder_process import DecoderProcess
from worker.training.decoding import BadFile
from worker.training.framing import Framing

#: Memory that the process may have in use in all, bytes: what a picture may take, and 64 MiB for
#: the interpreter and its libraries.
MEMORY_LIMIT_BYTES = MEMORY_BYTES + 64 * 1024 * 1024

#: How the pictures are cut: four parts in one of two sizes.
_FRAMING, _PLACES = Framing(((64, 64), (80, 48)), crops=4), (0.1, 0.3, 0.6, 0.9)

_MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F", "YCbCr")


def files(dice: random.Random) -> Iterator[tuple[str, bytes]]:
    """Picture files without end: whole, damaged, spliced, with other sizes than they say, bombs."""
    whole = _whole(dice)
    bodies = [body for _, body in whole]
    while True:
        name, body = dice.choice(whole)
        kinds = ("damaged", "spliced", "another size", "whole", "nonsense", "bomb")
        match dice.choices(kinds, (55, 15, 20, 4, 5, 1)):
            case ["damaged"]:
                yield f"damaged {name}", mutated(body, bodies, dice)
            case ["spliced"]:
                other_name, other = dice.choice(whole)
                cut = dice.randrange(len(body))
                yield f"{name} spliced with {other_name}", body[:cut] + other[cut:]
            case ["another size"]:
                yield f"{name} of another size", _resized(body, dice)
            case ["whole"]:
                yield name, body
            case ["nonsense"]:
                yield "nonsense", body[: dice.randrange(16)] + dice.randbytes(dice.randrange(4000))
            case _:
                yield _bomb(dice)


def _whole(dice: random.Random) -> list[tuple[str, bytes]]:
    """Small pictures in every format and mode that their writers have."""
    grain = Image.frombytes("L", (160, 120), dice.randbytes(160 * 120)).resize((640, 480))
    options: dict[str, list[dict[str, object]]] = {
        "JPEG": [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}],
        "PNG": [{}, {"compress_level": 0}],
        "WEBP": [{}, {"lossless": True}],
        "BMP": [{}],
        "GIF": [{}, {"interlace": 0}],
        "TIFF": [
            {"compression": kind}
            for kind in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
        ],
    }
    found = []
    for kind, every in options.items():
        for mode in _MODES:
            for option in every:
                out = BytesIO()
                size = (dice.randrange(20, 500), dice.randrange(20, 400))
                image = grain.resize(size).convert("L").convert(_plain(mode))
                image = _in_mode(image, mode)
                extras: dict[str, object] = {}
                if dice.random() < 0.5 and kind in ("JPEG", "PNG", "WEBP", "TIFF"):
                    exif = image.getexif()
                    exif[0x0112] = dice.randrange(1, 9)
                    exif[0x010E] = "x" * dice.randrange(200)
                    extras["exif"] = exif
                if dice.random() < 0.2 and kind in ("GIF", "WEBP", "TIFF", "PNG"):
                    extras |= {"save_all": True, "append_images": [image.rotate(90), image]}
                try:
                    image.save(out, kind, **option, **extras)
                except (OSError, ValueError, KeyError, SystemError, AttributeError):
                    continue  # no such combination
                found.append((f"{kind} {mode} {option or ''}".strip(), out.getvalue()))
    return found


def _plain(mode: str) -> str:
    return mode if mode in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr") else "L"


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.frombytes("I;16", image.size, bytes(2 * image.width * image.height))
    return image if image.mode == mode else image.convert(mode)


def _resized(body: bytes, dice: random.Random) -> bytes:
    """The same pixels under a header that says another size: 0, more, or far more."""
    side = dice.choice((0, 1, 15, 16, 63, 1000, 8000, 20_000, 65_535, 2**31 - 1))
    sides = (side, dice.choice((side, 16, 300)))
    changed = bytearray(body)
    if body[:4] == b"\x89PNG":
        changed[16:24] = struct.pack(">II", *sides)
    elif body[:3] == b"GIF":
        changed[6:10] = struct.pack("<HH", *(min(one, 65_535) for one in sides))
    elif body[:2] == b"BM":
        changed[18:26] = struct.pack("<ii", sides[0], dice.choice((1, -1)) * sides[1])
    elif body[:2] == b"\xff\xd8":
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            if (place := body.find(marker)) > 0:
                small = (min(one, 65_535) for one in sides)
                changed[place + 5 : place + 9] = struct.pack(">HH", *small)
    elif body[:2] in (b"II", b"MM"):
        order = "<" if body[:2] == b"II" else ">"
        for tag in (256, 257, 258, 273, 277, 278, 279, 322, 323):
            # Width, height, bits, strips and tiles: one of them now and then.
            place = body.find(struct.pack(f"{order}H", tag))
            if place > 0 and dice.random() < 0.3:
                changed[place + 8 : place + 12] = struct.pack(f"{order}I", side)
    else:
        for place in range(20, min(40, len(changed))):
            if dice.random() < 0.3:
                changed[place] = dice.randrange(256)
    return bytes(changed)


def _bomb(dice: random.Random) -> tuple[str, bytes]:
    """Files that are small for what they cost."""
    side = dice.choice((7_990, 4_000, 20_000))
    bombs = {
        "JPEG of scans": lambda: jpeg_of_scans(side, dice.choice((50, 100, 101, 5_000))),
        "PNG of chunks": lambda: png_of_chunks(dice.choice((1_000, 300_000))),
        "GIF of comments": lambda: gif_of_comments(dice.choice((1_000, 500_000))),
        "PNG of pixels": lambda: _saved(Image.new("1", (side, side)), "PNG"),
        "GIF of pixels": lambda: _saved(Image.new("P", (side, side)), "GIF"),
        "TIFF of pixels": lambda: _saved(Image.new("1", (side, side)), "TIFF"),
        "TIFF of tags": lambda: _tiff_of_tags(dice.choice((100, 60_000))),
        "WebP of pixels": lambda: _saved(Image.new("RGB", (5_600, 5_600)), "WEBP"),
    }
    name = dice.choice(list(bombs))
    return name, bombs[name]()


def _saved(image: Image.Image, kind: str) -> bytes:
    out = BytesIO()
    options = {"compression": "group4"} if kind == "TIFF" else {}
    image.save(out, kind, method=0, **options)
    return out.getvalue()


def _tiff_of_tags(count: int) -> bytes:
    tags = b"".join(struct.pack("<HHII", 256 + n, 4, 1, 64) for n in range(count))
    return b"II*\x00" + struct.pack("<IH", 8, count) + tags + struct.pack("<I", 8)


class Door:
    """Decodes files as a trainer does; knows what the processes that do it have used."""

    def __init__(self, folder: Path, decoder: DecoderProcess) -> None:
        self._path, self._decoder = folder / "picture", decoder
        self._memory = 0

    def __call__(self, body: bytes) -> str:
        """How it ended. Raises if it broke more than itself."""
        self._path.write_bytes(body)
        try:
            found = self._decoder.decode(str(self._path), _FRAMING, _PLACES)
        except BadFile as error:
            if not str(error).isprintable() or str(self._path) in str(error):
                raise AssertionError(f"not to be said: {error}") from None
            return _in_a_word(str(error))
        finally:
            self._look()
        if any(part.size not in _FRAMING.sizes for part in found.parts):
            raise AssertionError("a part of another size")
        return "decoded"

    def cpu_seconds(self) -> float:
        """Time of the processor that all of its processes have used."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = ended.ru_utime + ended.ru_stime
        if self._decoder.pid is not None:
            stat = Path(f"/proc/{self._decoder.pid}/stat").read_text()
            numbers = stat.rpartition(")")[2].split()
            used += (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")
        return used

    def memory_bytes(self) -> int:
        """The most that any of its processes had in use."""
        return self._memory

    def _look(self) -> None:
        if self._decoder.pid is None:
            return  # it was ended for what it did; it had no more than it may have
        for line in Path(f"/proc/{self._decoder.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                self._memory = max(self._memory, int(line.split()[1]) * 1024)


def _in_a_word(reason: str) -> str:
    for word in ("too much memory", "ended with", "seconds", "scans", "million pixels", "at least"):
        if word in reason:
            return f"refused: {word}"
    return "refused: damaged" if "damaged" in reason else "refused: no picture"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5_000, help="files")
    parser.add_argument("--seed", type=int, default=0, help="what they are made from")
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, DecoderProcess() as decoder:
        door = Door(Path(folder), decoder)
        tally = play(
            "images",
            files(random.Random(asked.seed)),
            door,
            seed=asked.seed,
            count=asked.count,
            memory_limit_bytes=MEMORY_LIMIT_BYTES,
            cpu_seconds=door.cpu_seconds,
            memory_bytes=door.memory_bytes,
        )
    print(tally.line(time.monotonic() - began))
    return 0 if tally.clean else 1


if __name__ == "__main__":
    sys.exit(main())
