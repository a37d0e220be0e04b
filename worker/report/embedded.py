"""How do pictures get into a page that stands alone? As data URIs, within a budget of bytes."""

import base64
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

#: Largest and smallest longer side of a picture, pixels, and its quality as WebP.
_LARGEST, _SMALLEST = 512, 64
_QUALITY = 82


def fitting_pictures(paths: Sequence[Path], budget_bytes: int) -> list[str]:
    """`paths` as data URIs of WebP pictures, as large as all of them together may be.

    Where even the smallest do not fit they are given all the same.
    """
    side = _LARGEST
    encoded = [_webp(path, side) for path in paths]
    while (excess := sum(map(len, encoded)) * 4 / 3 / budget_bytes) > 1 and side > _SMALLEST:
        side = max(_SMALLEST, int(0.9 * side / math.sqrt(excess)))
        encoded = [_webp(path, side) for path in paths]
    return [_uri(body, "image/webp") for body in encoded]


def thumbnails(paths: Sequence[Path | None], budget_bytes: int) -> list[str | None]:
    """Small JPEG files as data URIs, in order until the budget is spent; None for the others."""
    found: list[str | None] = []
    for path in paths:
        uri = _uri(path.read_bytes(), "image/jpeg") if path and path.is_file() else None
        if uri and len(uri) > budget_bytes:
            uri, budget_bytes = None, 0
        budget_bytes -= len(uri or "")
        found.append(uri)
    return found


def _webp(path: Path, side: int) -> bytes:
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = BytesIO()
    small.save(out, "WEBP", quality=_QUALITY, method=4)
    return out.getvalue()


def _uri(body: bytes, content_type: str) -> str:
    return f"data:{content_type};base64,{base64.b64encode(body).decode()}"
