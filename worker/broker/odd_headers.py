"""What AMQP lets a sender write beside a body, and pika cannot read.

A time after the year 9999 (milliseconds taken for seconds) raises in pika's reading of the
connection, before there is a delivery that could be refused: the message would end the connection
of every worker that it is given to. Names that are not UTF-8 come as bytes where text is expected.
"""

import pika.data

#: Kinds of values that Python may not be able to hold, and how many bytes follow the kind.
_SIZES = {b"T": 8, b"d": 8, b"f": 4}

_decode_value = pika.data.decode_value
_decode_short_string = pika.data.decode_short_string


def read_odd_headers() -> None:
    """Have pika read on in this process, whatever a message has beside its body.

    None stands for a value that cannot be held, and a question mark for each byte of a name that
    is no text.
    """
    pika.data.decode_value = _value_or_none
    pika.data.decode_short_string = _always_text


def _value_or_none(encoded: bytes, offset: int) -> tuple[object, int]:
    try:
        found: tuple[object, int] = _decode_value(encoded, offset)
    except (ValueError, OverflowError, OSError):
        size = _SIZES.get(encoded[offset : offset + 1])
        if size is None:
            raise
        return None, offset + 1 + size
    return found


def _always_text(encoded: bytes, offset: int) -> tuple[str, int]:
    found, after = _decode_short_string(encoded, offset)
    if isinstance(found, bytes):
        # As long as before, so that it still fits where it is written again.
        found = found.decode("ascii", errors="replace").replace("\N{REPLACEMENT CHARACTER}", "?")
    return found, after
