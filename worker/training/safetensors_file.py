"""A safetensors file as bytes: its header in one order, its tensors' hash, whole on the disk."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path


def add_to_header(path: Path, entries: Mapping[str, str]) -> None:
    """Say more in the header of a safetensors file; its tensors stay as they are."""
    write_whole(path, with_sorted_header(path.read_bytes(), entries))


def with_sorted_header(content: bytes, entries: Mapping[str, str] | None = None) -> bytes:
    """The same safetensors file with its metadata, and `entries`, in alphabetical order.

    The library writes the metadata in an order that changes from process to process. Layout: 8
    bytes with the header's length (little endian), the header as JSON padded with spaces to a
    multiple of 8, the data; see the format's description in safetensors' README.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(
        sorted({**header.get("__metadata__", {}), **(entries or {})}.items())
    )
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def tensor_digests(content: bytes) -> dict[str, str]:
    """The hash of a safetensors file's tensors, as the model specification and A1111 look for it.

    Both take all that follows the header.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(memoryview(content)[start:]).hexdigest()
    return {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}


def write_whole(path: Path, content: bytes) -> Path:
    """Write beside `path`, flush to the disk, and rename."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
