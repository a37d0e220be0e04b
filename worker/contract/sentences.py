"""What is wrong with one field of a message, in words for the person who sent it."""

import re

from pydantic_core import ErrorDetails

from worker.contract.bounds import MAX_NAME
from worker.contract.parameter_names import NOT_OFFERED, canonical_parameter, nearest_parameter


def sentence(detail: ErrorDetails) -> tuple[str, str]:
    """`(field, what is wrong)` of one pydantic error, in words for a person."""
    where = [str(part) for part in detail["loc"]]
    field = ".".join(where)
    kind = detail["type"]
    if kind == "missing":
        return field, "is missing"
    if kind == "too_short":
        return field, "is empty; send at least one"
    if kind == "extra_forbidden":
        if other := canonical_parameter(where[-1]):
            return field, f"is another name of {other}, which is given too; send one of them"
        if where[-1] in NOT_OFFERED:
            return field, NOT_OFFERED[where[-1]]
        near = nearest_parameter(where[-1]) if len(where[-1]) <= MAX_NAME else None
        return field, "is not a known parameter" + (f"; did you mean {near}?" if near else "")
    text = detail["msg"].removeprefix("Value error, ")
    text = re.sub(r"^(Input|String|Tuple|List) should", "should", text)
    found = detail.get("input")
    if isinstance(found, str | int | float | bool) and kind != "value_error":
        text += f", found {str(found)[:100]!r}" if isinstance(found, str) else f", found {found}"
    return field, text
