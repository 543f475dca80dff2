"""Seeded damage to input files: bytes, JSON, tables and safetensors as hand, disk or another program spoil
them."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2.5, 4.0, 10**30, -(10**30), 1e308, math.nan, math.inf, -math.inf, "", " ",
    "False", "1", "-1", "x" * 300, "\ud800", "\0", "../../x", [], {}, [[]], [None], [1, "a"], {"": 0},
    1_000_000, 65_536, "[1, -1]", "é\u202e",
)  # fmt: skip


def truncated(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 8))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 40) :]


def doubled(rng: random.Random, data: bytes) -> bytes:
    return data + data


def overwritten(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(16) + data[start + 16 :]


def empty(rng: random.Random, data: bytes) -> bytes:
    return rng.choice((b"", b"\n", b" \n \n", b"\0" * 64))


BYTES: tuple[Mutation, ...] = (truncated, flipped, flipped, cut, doubled, overwritten, empty)


def recoded(rng: random.Random, data: bytes) -> bytes:
    text = data.decode()
    way = rng.randrange(5)
    if way == 0:
        return text.encode("utf-8-sig")
    if way == 1:
        return text.replace("\r\n", "\n").replace("\n", "\r\n").encode()
    return text.encode(("utf-16", "utf-32", "utf-16-le")[way - 2], "replace")


def odd_value(rng: random.Random, data: bytes) -> bytes:
    """One value of a JSON file exchanged for one of another kind."""
    return _dumped(
        _changed(rng, json.loads(data), lambda inside, key: inside.__setitem__(key, rng.choice(ODD)))
    )


def without(rng: random.Random, data: bytes) -> bytes:
    """One entry of a JSON file gone."""
    return _dumped(_changed(rng, json.loads(data), lambda inside, key: inside.__delitem__(key)))


def swapped(rng: random.Random, data: bytes) -> bytes:
    """One value of a JSON file exchanged for another one of the same file."""
    value = json.loads(data)
    other = rng.choice(list(_places(value)))
    return _dumped(
        _changed(
            rng, value, lambda inside, key: inside.__setitem__(key, json.loads(_text(other[0][other[1]])))
        )
    )


def more(rng: random.Random, data: bytes) -> bytes:
    """One entry more in an object or a list of a JSON file."""
    value = json.loads(data)
    holders = [
        value,
        *(inside[key] for inside, key in _places(value) if isinstance(inside[key], dict | list)),
    ]
    holder = rng.choice(holders)
    if isinstance(holder, dict):
        holder[rng.choice(("extra", "", "n_heads", "__class__"))] = rng.choice(ODD)
    elif isinstance(holder, list):
        holder.append(rng.choice(ODD) if not holder or rng.random() < 0.5 else json.loads(_text(holder[0])))
    return _dumped(value)


def named_twice(rng: random.Random, data: bytes) -> bytes:
    """An object of a JSON file with one name twice."""
    value = json.loads(data)
    if not isinstance(value, dict) or not value:
        return data
    name = rng.choice(list(value))
    return b'{"' + name.encode() + b'": ' + _dumped(rng.choice(ODD)) + b", " + _dumped(value)[1:]


def nested(rng: random.Random, data: bytes) -> bytes:
    """A JSON file with a value nested without end."""
    marker = "nest here"
    value = _changed(rng, json.loads(data), lambda inside, key: inside.__setitem__(key, marker))
    return _dumped(value).replace(f'"{marker}"'.encode(), b"[" * 50_000 + b"]" * 50_000)


JSON: tuple[Mutation, ...] = (odd_value,) * 8 + (
    without,
    without,
    swapped,
    swapped,
    more,
    named_twice,
    nested,
    recoded,
    *BYTES,
)


def odd_cell(rng: random.Random, data: bytes) -> bytes:
    """One cell of a table exchanged for an odd one (quotes and commas as they fall)."""
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    cells = lines[at].split(",")
    cells[rng.randrange(len(cells))] = rng.choice(
        (
            "",
            "-1",
            "2.5",
            "True",
            "nan",
            "inf",
            "1e400",
            "99999999999999999999999",
            "[1, 2",
            "[]",
            '"',
            "a,b",
            "\0",
            "é",
        )
    )
    return "\n".join((*lines[:at], ",".join(cells), *lines[at + 1 :], "")).encode()


def odd_row(rng: random.Random, data: bytes) -> bytes:
    """Rows of a table repeated, gone, in another order, or of another width."""
    head, *rows = data.decode().splitlines()
    at = rng.randrange(len(rows))
    way = rng.randrange(5)
    if way == 0:
        rows.insert(at, rows[at])
    elif way == 1:
        del rows[at]
    elif way == 2:
        rows[at] += ",1"
    elif way == 3:
        rows = []
    else:
        head, rows = rows[0], rows[1:]
    return "\n".join((head, *rows, "")).encode()


TABLE: tuple[Mutation, ...] = (odd_cell,) * 8 + (odd_row,) * 4 + (recoded, *BYTES)


def odd_header(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with one thing of its header changed, in JSON inside the header, too."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    said = header.get("__metadata__", {})
    inside = [name for name, text in said.items() if text[:1] in "{["]
    if inside and rng.random() < 0.7:
        name = rng.choice(inside)
        said[name] = rng.choice(JSON[:15])(rng, said[name].encode()).decode()
    else:
        header = json.loads(rng.choice((odd_value, without, swapped))(rng, _dumped(header)))
    changed = _dumped(header)
    return struct.pack("<Q", len(changed)) + changed + data[8 + length :]


SAFETENSORS: tuple[Mutation, ...] = (odd_header,) * 8 + BYTES


def _places(value: Any) -> Any:
    """Every (container, key) of a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _changed(rng: random.Random, value: Any, change: Callable[[Any, Any], None]) -> Any:
    places = list(_places(value))
    if places:
        change(*rng.choice(places))
    return value


def _text(value: Any) -> str:
    return json.dumps(value)


def _dumped(value: Any) -> bytes:
    return _text(value).encode()
