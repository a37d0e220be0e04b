"""Fuzz the message parser: `python -m tests.fuzz.messages [--count 100000] [--seed 0] [--guided]`.

Prints one JSON line. The exit status is 0 if no input crashed, hung or took too much memory.
`--guided` lets libFuzzer choose the inputs by the code that they reach (needs `atheris`).
"""

import argparse
import json
import random
import string
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

#: Memory that the process may have in use in all, bytes; 80 MiB of it are its libraries.
MEMORY_LIMIT_BYTES = 384 * 1024 * 1024

#: Largest body that is tried, bytes; a little more than is read.
LARGEST = 4 * 1024 * 1024 + 10

FLAT: dict[str, Any] = {
    "style_id": 10,
    "image_urls": ["s3://stylelicense-media/training/10/a.jpg"],
    "webhook_url": "https://api.example.com",
}
ENVELOPED: dict[str, Any] = {
    "task_id": "550e8400-e29b-41d4-a716-446655440000",
    "type": "model_training",
    "data": {
        "style_id": 123,
        "images": [
            {"url": "s3://stylelicense-media/training/123/1.jpg", "caption": "a [trigger], inked"},
            "https://cdn.example.com/2.png?X-Amz-Signature=1",
        ],
        "tags": ["watercolor", "portrait"],
        "trigger_word": "sks",
        "caption_template": "{trigger} style, {tags}",
        "parameters": {
            "epochs": 200,
            "learning_rate": 0.0001,
            "batch_size": 1,
            "lora_rank": 8,
            "target_modules": "attn-mlp",
            "validation_split": 0.1,
            "validation_prompts": ["a boat"],
            "seed": 7,
            "shuffle_captions": True,
            "keep_tokens": 1,
        },
    },
    "webhook_url": "https://api.example.com/api/webhooks/training/123/status",
    "created_at": "2025-01-20T10:00:00.000Z",
}

#: Names that mean something somewhere in a message.
_NAMES = (
    *("job_id", "task_id", "style_id", "image_urls", "images", "webhook_url", "callback_url"),
    *("trigger_word", "tags", "caption_template", "parameters", "type", "data", "created_at"),
    *("url", "caption", "rank", "seed", "epochs", "target_modules", "validation_prompts"),
    *("optimizer", "learning_rate", "time_limit_seconds", "base_model", "resolution"),
    *("__class__", "__proto__", "model_config", "", "\x00", "\ud800", "\u202e", "$ref"),
)

_WORDS = (
    *("", " ", "\x00", "\r\nX-Injected: 1", "\x1b[31mred", "\x9b31m", "\u202etxt", "\ud800", "ÿ"),
    *(
        "../../etc/passwd",
        "..",
        ".",
        "/",
        "\\",
        "%2e%2e",
        "{trigger}",
        "{0.__class__}",
        "[trigger]",
    ),
    *("'; drop table jobs; --", "<script>alert(1)</script>", "{{7*7}}", "${jndi:ldap://x}", "%s%n"),
    *("https://api.example.com", "https://api.example.com@evil.example", "https://evil.example"),
    *("https://api.example.com\\@evil.example", "http://169.254.169.254/", "https://[::1]"),
    *("https://api.example.com/api/webhooks/../../x", "https://api.example.com/?x", "//evil"),
    *("s3://bucket/key", "s3://bucket/../other/key", "s3:///key", "file:///etc/passwd", "gs://b/k"),
    *("nan", "null", "true", "1e999", "attn", "adamw8bit", "0x10", "１２", "a" * 300, "é" * 5000),
)

_NUMBERS = (
    *(
        0,
        -1,
        1,
        2**31,
        2**53 + 1,
        2**63 - 1,
        2**63,
        -(2**63) - 1,
        10**400,
        1.5,
        -0.0,
        1e-320,
        1e308,
    ),
    *(float("nan"), float("inf"), float("-inf"), True, False, None, 512, 513, 65, 0.5),
)


def bodies(dice: random.Random) -> Iterator[tuple[str, bytes]]:
    """Bodies without end: valid ones with odd values, broken bytes, nonsense, and huge ones."""
    # Imported late, so that a guided run can follow what they do.
    from tests.fuzz.campaign import mutated

    valid = [_encoded(FLAT, dice), _encoded(ENVELOPED, dice)]
    while True:
        match dice.choices(("odd values", "broken bytes", "nonsense", "huge"), (60, 33, 6.7, 0.3)):
            case ["odd values"]:
                yield "odd values", _encoded(_odd(dice), dice)
            case ["broken bytes"]:
                body = _encoded(_odd(dice), dice) if dice.random() < 0.5 else dice.choice(valid)
                yield "broken bytes", mutated(body, valid, dice)
            case ["nonsense"]:
                yield "nonsense", dice.randbytes(dice.randrange(2000))
            case _:
                yield _huge(dice)


def _encoded(value: Any, dice: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=dice.random() < 0.5, sort_keys=dice.random() < 0.2)
    return text.encode("utf-8", "surrogatepass")


def _odd(dice: random.Random) -> Any:
    """A valid message in which one to four things are not as they should be."""
    message = json.loads(json.dumps(dice.choice((FLAT, ENVELOPED))))
    for _ in range(dice.choice((1, 1, 2, 4))):
        if not (places := list(_places(message))):
            break
        owner, key = dice.choice(places)
        match dice.randrange(6):
            case 0 if isinstance(owner, dict):
                owner.pop(key)
            case 1 if isinstance(owner, dict):
                owner[dice.choice(_NAMES)] = owner.pop(key)
            case 2 if isinstance(owner, dict):
                owner[dice.choice(_NAMES)] = _value(dice, 3)
            case _:
                owner[key] = _value(dice, 3)
    return message


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in nested JSON, as its owner and its key."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _value(dice: random.Random, depth: int) -> Any:
    match dice.randrange(8 if depth else 5):
        case 0 | 1:
            return dice.choice(_WORDS)
        case 2 | 3:
            return dice.choice(_NUMBERS)
        case 4:
            return "".join(dice.choices(string.printable, k=dice.randrange(60)))
        case 5:
            return [_value(dice, depth - 1) for _ in range(dice.randrange(4))]
        case 6:
            return {dice.choice(_NAMES): _value(dice, depth - 1) for _ in range(dice.randrange(4))}
        case _:
            nested: Any = dice.choice(_WORDS)
            for _ in range(dice.choice((5, 63, 64, 65, 300))):
                nested = [nested] if dice.random() < 0.5 else {dice.choice(_NAMES): nested}
            return nested


def _huge(dice: random.Random) -> tuple[str, bytes]:
    """A body of megabytes: much of one thing, or very deep."""
    size = dice.choice((100_000, 1_000_000, LARGEST - 500))
    where = dice.choice(("parameters", "image_urls", "tags", "type", "job_id", "zzz", "data"))
    kinds = {
        "one string": lambda: f'"{"x" * size}"',
        "names": lambda: "{" + ",".join(f'"p{n}":1' for n in range(size // 12)) + "}",
        "addresses": lambda: "[" + ",".join(['"s3://b/k"'] * (size // 11)) + "]",
        "empty lists": lambda: "[" + ",".join(["[]"] * (size // 3)) + "]",
        "empty objects": lambda: "[" + ",".join(["{}"] * (size // 3)) + "]",
        "numbers": lambda: "[" + ",".join(["1"] * (size // 2)) + "]",
        "digits": lambda: "9" * min(size, 4300),
        "depth": lambda: "[" * (size // 2) + "]" * (size // 2),
        "escapes": lambda: '"' + f"{chr(92)}u0001" * (size // 6) + '"',
    }
    kind = dice.choice(list(kinds))
    plain = {name: value for name, value in FLAT.items() if name != where}
    text = json.dumps(plain)[:-1] + f', "{where}": {kinds[kind]()}}}'
    return f"{where}: {kind}", text.encode()[:LARGEST]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="messages")
    parser.add_argument("--seed", type=int, default=0, help="what they are made from")
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris")
    asked = parser.parse_args(arguments)
    if asked.guided:
        return _guided(asked.count, asked.seed)
    from tests.fuzz.campaign import play
    from tests.fuzz.message_door import Door, log_here

    log_here()
    began = time.monotonic()
    tally = play(
        "messages",
        bodies(random.Random(asked.seed)),
        Door(),
        seed=asked.seed,
        count=asked.count,
        memory_limit_bytes=MEMORY_LIMIT_BYTES,
    )
    print(tally.line(time.monotonic() - began))
    return 0 if tally.clean else 1


def _guided(count: int, seed: int) -> int:
    import tempfile
    from pathlib import Path

    import atheris

    with atheris.instrument_imports(include=["worker", "json"]):
        from tests.fuzz.message_door import Door, log_here

    log_here()
    door, dice, tried = Door(), random.Random(seed), 0
    examples = [_encoded(_odd(dice), dice) for _ in range(200)]
    outcomes: dict[str, int] = {}
    slowest, began = 0.0, time.monotonic()

    def try_one(body: bytes) -> None:
        nonlocal tried, slowest
        tried += 1
        started = time.process_time()
        ended = door(body)
        slowest = max(slowest, time.process_time() - started)
        outcomes[ended] = outcomes.get(ended, 0) + 1
        if tried == count:
            found = {"kind": "messages, guided", "inputs": tried, "outcomes": outcomes}
            found |= {"crashes": 0, "slowest_seconds": round(slowest, 3)}
            print(json.dumps({**found, "seconds": round(time.monotonic() - began)}), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for number, body in enumerate(examples):
            (Path(folder) / f"{number:03d}").write_bytes(body)
        limits = ["-max_len=8192", f"-seed={seed + 1}", "-timeout=5", "-rss_limit_mb=512"]
        atheris.Setup([sys.argv[0], folder, f"-runs={count}", *limits], try_one)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
