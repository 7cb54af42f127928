"""Bytes and JSON values in, damaged ones out; every draw comes from the generator given."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

HEADER_BYTES = 256
MOST_MUTATIONS = 4
MOST_COPIED_BYTES = 4096

# Numbers at which signs, widths and limits change, in the sizes in which headers hold them.
EDGE_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000)
EDGE_NUMBERS_WIDE = (*EDGE_NUMBERS, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)

Mutation = Callable[[Random, bytes, Sequence[bytes]], bytes]


def _position(random: Random, data: bytes) -> int:
    """A place in the data: two times out of three in its header."""
    end = min(len(data), HEADER_BYTES) if random.random() < 2 / 3 else len(data)
    return random.randrange(end) if end else 0


def flip_bits(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Flips up to 16 bits."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 16)):
        if changed:
            changed[_position(random, data)] ^= 1 << random.randrange(8)
    return bytes(changed)


def write_number(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Overwrites 1, 2, 4 or 8 bytes by a number at an edge, in either byte order."""
    width = random.choice((1, 2, 4, 8))
    number = random.choice(EDGE_NUMBERS_WIDE) & (256**width - 1)
    order: Any = random.choice(("little", "big"))
    start = _position(random, data)
    return data[:start] + number.to_bytes(width, order) + data[start + width :]


def truncate(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Cuts the end off, anywhere."""
    return data[: random.randrange(len(data) + 1)]


def remove_block(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Takes a block out of the middle."""
    start = _position(random, data)
    return data[:start] + data[start + random.randint(1, 512) :]


def repeat_block(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Writes a block twice, or up to nine times."""
    start = _position(random, data)
    block = data[start : start + random.randint(1, 512)]
    return data[:start] + block * random.randint(2, 9) + data[start + len(block) :]


def insert_noise(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Puts random bytes in, or over what is there."""
    start = _position(random, data)
    noise = random.randbytes(random.randint(1, 128))
    skipped = len(noise) if random.random() < 0.5 else 0
    return data[:start] + noise + data[start + skipped :]


def clear_block(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Overwrites a block by zeros or ones, as lost disk blocks read."""
    start = _position(random, data)
    length = min(random.randint(1, 1024), len(data) - start)
    return data[:start] + random.choice((b"\0", b"\xff")) * length + data[start + length :]


def splice(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Goes on as another file from some place on, or has a part of it in its middle."""
    if not others:
        return data
    other = random.choice(others)
    start, place = _position(random, data), random.randrange(len(other) + 1)
    if random.random() < 0.5:
        return data[:start] + other[place:]
    part = other[place : place + random.randint(1, MOST_COPIED_BYTES)]
    return data[:start] + part + data[start:]


def swap_blocks(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Exchanges two blocks of one length."""
    length = random.randint(1, 64)
    first, second = sorted((_position(random, data), _position(random, data)))
    if second < first + length or second + length > len(data):
        return flip_bits(random, data, others)
    middle = data[first + length : second]
    left, right = data[first : first + length], data[second : second + length]
    return data[:first] + right + middle + left + data[second + length :]


def replace_all(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Nothing, noise, a web page, or the content of a file of another format."""
    kind = random.randrange(4)
    if kind == 0:
        return b""
    if kind == 1:
        return random.randbytes(random.randint(1, 2048))
    if kind == 2 or not others:
        return b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    return random.choice(others)


FREQUENT: tuple[Mutation, ...] = (
    *(flip_bits, flip_bits, write_number, write_number, truncate, remove_block),
    *(repeat_block, insert_noise, clear_block, splice, swap_blocks),
)


def mutate(random: Random, data: bytes, others: Sequence[bytes] = ()) -> tuple[bytes, str]:
    """A damaged copy of `data`, and how it was damaged.

    Args:
        random: Source of all draws.
        data: A valid file.
        others: Other files, of this and of other formats, to take parts from.

    Returns:
        The bytes and the names of the mutations, in order.
    """
    if random.random() < 0.04:
        return replace_all(random, data, others), replace_all.__name__
    names = []
    for _ in range(random.randint(1, MOST_MUTATIONS)):
        mutation = random.choice(FREQUENT)
        data = mutation(random, data, others)
        names.append(mutation.__name__)
    return data, "+".join(names)


HOSTILE_TEXTS = (
    *("", " ", "\0", "..", "../../etc/passwd", "/etc/passwd", "~", "C:\\x", "a" * 5000),
    *("nan", "inf", "-1", "1e999", "1" * 5000, "true", "null", "[", "{", "'", '"', "%s", "{0}"),
    *(
        "²",
        "١٢",
        "é",
        "e\u0301",
        "\U0001f3a5",
        "\ud800",
        "$(id)",
        "; rm -rf x",
        "-",
        "--",
        "=",
        ",",
    ),
    *("\n", "\r\n"),
)


def hostile_value(random: Random, depth: int = 0) -> Any:
    """Any JSON value that a reader may not expect."""
    kind = random.randrange(9)
    if kind == 0:
        return random.choice((None, True, False))
    if kind == 1:
        return random.choice((1, -1)) * random.choice((*EDGE_NUMBERS_WIDE, 10**30, 10**400))
    if kind == 2:
        return random.choice((math.nan, math.inf, -math.inf, 1e308, 5e-324, -0.0, 0.5))
    if kind in (3, 4):
        return random.choice(HOSTILE_TEXTS)
    if kind in (5, 6) or depth > 2:
        return random.randint(-3, 40)
    if kind == 7:
        return [hostile_value(random, depth + 1) for _ in range(random.randrange(7))]
    return {
        random.choice(HOSTILE_TEXTS): hostile_value(random, depth + 1)
        for _ in range(random.randrange(4))
    }


def mutate_value(random: Random, value: Any) -> Any:
    """A copy of a JSON value with one part changed, removed or added."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        changed = dict(value)
        key = random.choice(list(changed))
        kind = random.random()
        if kind < 0.1:
            del changed[key]
        elif kind < 0.2:
            changed[random.choice(HOSTILE_TEXTS)] = changed.pop(key)
        elif kind < 0.3:
            changed[random.choice(HOSTILE_TEXTS)] = hostile_value(random)
        else:
            changed[key] = mutate_value(random, changed[key])
        return changed
    if isinstance(value, list) and value and random.random() < 0.7:
        entries = list(value)
        place = random.randrange(len(entries))
        kind = random.random()
        if kind < 0.15:
            del entries[place]
        elif kind < 0.3:
            entries.insert(place, entries[random.randrange(len(entries))])
        else:
            entries[place] = mutate_value(random, entries[place])
        return entries
    if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.4:
        return random.choice(
            (
                -value,
                value * 2,
                value + 1,
                value - 1,
                0,
                float(max(min(value, 1e300), -1e300)),
                str(value)[:99],
            )
        )
    return hostile_value(random)


def mutate_json(random: Random, text: str) -> tuple[bytes, str]:
    """A JSON text with some values changed, nested without end, or with damaged bytes."""
    kind = random.random()
    if kind < 0.02:
        bracket = random.choice("[{")
        deep = "[" if bracket == "[" else '{"a":'
        return (deep * random.choice((100, 5000, 200_000))).encode(), "nested"
    if kind < 0.25:
        return mutate(random, text.encode())
    value = json.loads(text)
    for _ in range(random.randint(1, 3)):
        value = mutate_value(random, value)
    return json.dumps(value).encode("utf-8", "surrogatepass"), "values"
