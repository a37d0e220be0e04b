"""Which colours does a file mean? Those of the ICC profile in it; models are trained on sRGB.

A camera's file in Adobe RGB or a phone's in Display P3 looks pale where its numbers are taken for
sRGB. The profile is a stranger's too, and is read where the picture is decoded.
"""

from io import BytesIO
from typing import Any

from PIL import Image, ImageCms

#: Modes whose colours a profile is of, once a palette or alpha is out of the way.
_OF_MODE = {
    "RGB": "RGB",
    **dict.fromkeys(("P", "PA", "RGBA", "RGBa", "RGBX"), "RGB"),
    "CMYK": "CMYK",
}

#: What a profile calls itself that is left alone: ordinary photographs keep their bits.
_SRGB = "srgb"


def to_srgb(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """What makes sRGB of a picture's colours, for images in RGB, or in CMYK where it is.

    None if they are sRGB already, or are taken for it: there is no profile, or none that can be
    read, or it is of other colours than the picture has.
    """
    profile: Any = image.info.get("icc_profile")
    mode = _OF_MODE.get(image.mode)
    if not profile or mode is None:
        return None
    try:
        its_own = ImageCms.ImageCmsProfile(BytesIO(profile))
        if _SRGB in ImageCms.getProfileDescription(its_own).lower():
            return None
        return ImageCms.buildTransform(its_own, ImageCms.createProfile("sRGB"), mode, "RGB")
    except MemoryError:
        raise
    except Exception:
        # Whatever a stranger's bytes raise here, the picture itself may be good.
        return None
