"""What AMQP lets a sender write beside a body, and pika cannot read.

A time after the year 9999 (milliseconds taken for seconds) raises in pika's reading of the
connection, before there is a delivery that could be refused: the message would end the connection
of every worker that it is given to. So would tables within tables without end. A large number is
read and cannot be written into a copy; names that are not UTF-8 come as bytes where text is
expected.
"""

import threading

import pika.data

#: Kinds of values that Python may not be able to hold, and how many bytes follow the kind.
_SIZES = {b"T": 8, b"d": 8, b"f": 4}

#: Kinds of values with others in them, and how many of these may lie in one another.
_NESTS = (b"A", b"F")
_MAX_DEPTH = 64

#: pika writes whole numbers of 8 bytes, with a sign.
_LEAST, _MOST = -(2**63), 2**63 - 1

_decode_value = pika.data.decode_value
_decode_short_string = pika.data.decode_short_string


def read_odd_headers() -> None:
    """Have pika read on in this process, whatever a message has beside its body.

    None stands for a value that cannot be held or written again, and a question mark for each byte
    of a name that is no text.
    """
    pika.data.decode_value = _value_or_none
    pika.data.decode_short_string = _always_text


class _Depth(threading.local):
    now = 0


_depth = _Depth()


def _value_or_none(encoded: bytes, offset: int) -> tuple[object, int]:
    kind = encoded[offset : offset + 1]
    if kind not in _NESTS:
        return _plain_or_none(kind, encoded, offset)
    if _depth.now == _MAX_DEPTH:
        return None, offset + 5 + int.from_bytes(encoded[offset + 1 : offset + 5])
    _depth.now += 1
    try:
        found: tuple[object, int] = _decode_value(encoded, offset)
    finally:
        _depth.now -= 1
    return found


def _plain_or_none(kind: bytes, encoded: bytes, offset: int) -> tuple[object, int]:
    try:
        found, after = _decode_value(encoded, offset)
    except (ValueError, OverflowError, OSError):
        if kind not in _SIZES:
            raise
        return None, offset + 1 + _SIZES[kind]
    fits = not isinstance(found, int) or _LEAST <= found <= _MOST
    return found if fits else None, after


def _always_text(encoded: bytes, offset: int) -> tuple[str, int]:
    found, after = _decode_short_string(encoded, offset)
    if isinstance(found, bytes):
        # As long as before, so that it still fits where it is written again.
        found = found.decode("ascii", errors="replace").replace("\N{REPLACEMENT CHARACTER}", "?")
    return found, after
