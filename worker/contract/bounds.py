"""What is too much in a message to be looked at piece by piece? A stranger chooses its size."""

import itertools
from typing import Any

#: Deepest nesting of a body; the contract needs 4. Whoever reads on then needs no stack for it.
MAX_DEPTH = 64

#: Longest name that is compared with the known ones, or shown; characters.
MAX_NAME = 64

#: Lists of pictures, and what they are called in a problem.
_PICTURES = {"image_urls": "image_urls", "images": "image_urls", "class_images": "class_images"}

#: Names in `parameters`, and items of a list other than the pictures', that are looked at: more
#: than any may have, so that the rest only adds to what is wrong already.
_MAX_PARAMETERS, _MAX_ITEMS = 200, 200


def is_deep(payload: Any) -> bool:
    """Whether JSON is nested deeper than `MAX_DEPTH`."""
    level = [payload]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for one in level
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def too_many(fields: dict[str, Any], max_images: int) -> list[tuple[str, str]]:
    """What there is too much of to be looked at one by one; `fields` keeps the beginning of it."""
    problems = []
    for name, shown in _PICTURES.items():
        images = fields.get(name)
        if isinstance(images, list) and len(images) > max_images:
            found = f"has {len(images)} pictures; at most {max_images} are allowed"
            problems.append((shown, found))
            fields[name] = images[:max_images]
    parameters = fields.get("parameters")
    if isinstance(parameters, dict):
        if len(parameters) > _MAX_PARAMETERS:
            problems.append(("parameters", f"has {len(parameters)} names; there are not so many"))
        some = itertools.islice(parameters.items(), _MAX_PARAMETERS)
        fields["parameters"] = {name: _beginning(value) for name, value in some}
    if "tags" in fields:
        fields["tags"] = _beginning(fields["tags"])
    return problems


def _beginning(value: Any) -> Any:
    return value[:_MAX_ITEMS] if isinstance(value, list) else value
