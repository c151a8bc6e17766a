"""Changes of valid files: bytes at random, or values of other types in a file that stays well-formed."""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
import pickletools
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml

Change = Callable[[bytes, random.Random], bytes]

NUMBERS = (
    b"0",
    b"-1",
    b"NaN",
    b"1e999",
    b"-Infinity",
    b"4294967296",
    b"9" * 30,
    b"0.1",
    b"1000000000",
    b"true",
)
TOKENS = (
    *(b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"<object>", b"</", b"&lt;", b"&a;", b"]]>", b"[", b"{", b"}", b"]"),
    *(b'"', b"\x00", b"\xff\xfe", b"!!python/object/apply:os.system ", b"&a ", b"*a", b"../../", b"null"),
    *(b"cos\nsystem\n", b"\x80\x05", b"R", b"\xff\xc0", b"\xff\xd9", b"PK\x03\x04", b"\n", b"\r\n", b"\t"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e308, -0.0),
    *(
        float("nan"),
        float("inf"),
        "",
        "a",
        "0",
        "a\nb",
        "\x1b[31m",
        "\x00",
        "../../x",
        "/etc/passwd",
        "x" * 5000,
    ),
    *("\u202f", "\ud800", [], {}, [None], [[]], [1, 2], [0.5] * 4, {"a": 1}, {"": {}}, [[[[[[[[]]]]]]]]),
)
ARGUMENTS = (
    *(b"", b"\0", b"\1", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\xff" * 8, b"0\n", b"1\n", b"9" * 30 + b"\n"),
    *(b"'a'\n", b"os\nsystem\n", b"numpy\ndtype\n", b"collections\nOrderedDict\n", b"\3abc"),
)
"""What may follow an instruction of a pickle."""
DESCRIPTIONS: tuple[Any, ...] = (
    *(
        "<f4",
        ">f4",
        "<f8",
        "<f2",
        "<i4",
        "<u8",
        "|b1",
        "<c8",
        "|S3",
        "<U3",
        "|V7",
        "|O",
        "<M8[s]",
        "V0",
        "S0",
    ),
    *("V2147483647", [["a", "<f4"]], "x", "", 3, None, [], "<f4" * 2000),
)


def damage(content: bytes, rng: random.Random) -> bytes:
    """Return ``content`` with one to six changes, of single bytes, blocks, numbers or the end."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 6))):
        place = rng.randrange(len(found) + 1)
        length = rng.choice((1, 2, 8, 40, 400))
        match rng.randrange(8):
            case 0:
                found[place : place + 1] = bytes([rng.randrange(256)])
            case 1 if place < len(found):
                found[place] ^= 1 << rng.randrange(8)
            case 2:
                del found[place : place + length]
            case 3:
                found[place:place] = found[place : place + length] * rng.choice((1, 1, 50))
            case 4:
                found[place:place] = rng.choice(TOKENS)
            case 5:
                _change_number(found, rng)
            case 6:
                found[place : place + 4] = rng.choice((b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0"))
            case _ if rng.random() < 0.2:
                del found[place:]
    return bytes(found)


def _change_number(content: bytearray, rng: random.Random) -> None:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if numbers:
        start, end = rng.choice(numbers).span()
        content[start:end] = rng.choice(NUMBERS)


def any_of(*changes: Change) -> Change:
    """Return a change that is one of ``changes``, chosen for each file."""
    return lambda content, rng: rng.choice(changes)(content, rng)


def change_value(value: Any, rng: random.Random) -> Any:
    """Return ``value``, of lists and dictionaries, with one to three entries replaced, removed or added."""
    whole = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [(whole, 0), *_places(whole[0])]
        container, key = rng.choice(places)
        match rng.randrange(6):
            case 0 if len(places) > 1 and container is not whole:
                del container[key]
            case 1 if isinstance(container, dict):
                container[rng.choice(("", "a", "x" * 300, "\n"))] = copy.deepcopy(rng.choice(VALUES))
            case 2:
                other, name = rng.choice(places)
                container[key] = copy.deepcopy(other[name])
            case _:
                container[key] = copy.deepcopy(rng.choice(VALUES))
    return whole[0]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) below ``value``."""
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


def change_json(content: bytes, rng: random.Random) -> bytes:
    """Change values of a JSON file, which stays well-formed but for NaN and infinity."""
    return json.dumps(change_value(json.loads(content), rng)).encode()


def change_json_lines(content: bytes, rng: random.Random) -> bytes:
    """Change values of one line of a file of JSON lines."""
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = change_json(lines[place], rng)
    return b"\n".join(lines) + b"\n"


def change_yaml(content: bytes, rng: random.Random) -> bytes:
    """Change values of a YAML file, which stays well-formed."""
    return yaml.safe_dump(change_value(yaml.safe_load(content), rng)).encode("utf-8", "surrogatepass")


def change_pickle(content: bytes, rng: random.Random) -> bytes:
    """Change values of a pickle of ours, which stays well-formed."""
    return pickle.dumps(change_value(pickle.loads(content), rng), rng.randrange(6))


def change_instructions(content: bytes, rng: random.Random) -> bytes:
    """Leave out, repeat, replace or add instructions of a pickle."""
    starts = [start for _, _, start in pickletools.genops(content)]
    found = [content[start:end] for start, end in itertools.pairwise([*starts, len(content)])]
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        place = rng.randrange(len(found) or 1)
        match rng.randrange(4):
            case 0:
                del found[place : place + rng.choice((1, 1, 2, 5))]
            case 1 if found:
                found[place] = rng.choice(found)
            case 2 if found:
                found.insert(place, rng.choice(found))
            case _:
                code = rng.choice(pickletools.opcodes).code.encode("latin-1")
                found.insert(place, code + rng.choice(ARGUMENTS))
    return b"".join(found)


def change_npy(content: bytes, rng: random.Random) -> bytes:
    """Write another header before the array of a ``.npy`` file."""
    length = struct.unpack_from("<H", content, 8)[0]
    header = {"descr": "<f4", "fortran_order": False, "shape": (3, 4)}
    match rng.randrange(5):
        case 0:
            header["descr"] = rng.choice(DESCRIPTIONS)
        case 1:
            sides = (0, 1, 4, 5, -1, True, None, "4", 10**9, 2**63, 10**30)
            header["shape"] = tuple(rng.choice(sides) for _ in range(rng.randrange(5)))
        case 2:
            header["fortran_order"] = rng.choice(VALUES)
        case 3:
            header = change_value(header, rng)
        case _:
            header["shape"] = (rng.randrange(6), 4)
    text = f"{header}\n".encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        text = damage(text, rng)
    version, layout = rng.choice((((1, 0), "<H"), ((2, 0), "<I"), ((3, 0), "<I")))
    start = b"\x93NUMPY" + bytes(version) + struct.pack(layout, min(len(text), 65535))
    return start + text + content[10 + length :]


def change_npz(content: bytes, rng: random.Random) -> bytes:
    """Change one array of an ``.npz`` archive, its name or how it is packed."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(changed, "w") as written:
        chosen = rng.randrange(len(archive.namelist()))
        for place, name in enumerate(archive.namelist()):
            member = archive.read(name)
            method = zipfile.ZIP_DEFLATED
            if place == chosen:
                member = rng.choice((change_npy, damage))(member, rng)
                name = rng.choice(
                    (name, name, name, "a", "\n.npy", "../../a.npy", "\u202f.npy", "x" * 400, ".npy")
                )
                method = rng.choice((0, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
            written.writestr(name, member, method)
    return changed.getvalue()


def change_manifest(content: bytes, rng: random.Random) -> bytes:
    """Change values of a store's manifest; its checksum fits again, or is missing."""
    manifest = json.loads(content)
    del manifest["crc32"]
    changed = change_value(manifest, rng)
    if isinstance(changed, dict) and rng.random() < 0.5:
        changed["crc32"] = zlib.crc32(json.dumps(changed, sort_keys=True).encode())
    return json.dumps(changed).encode()


def change_kept(content: bytes, rng: random.Random) -> bytes:
    """Change the values of a result that is kept with a store; its checksum fits again."""
    whole = json.loads(content)
    whole["result"] = change_value(whole["result"], rng)
    text = json.dumps([whole["facts"], whole["result"]], sort_keys=True)
    whole["crc32"] = zlib.crc32(text.encode())
    return json.dumps(whole).replace("Infinity", "1e999").encode()


def change_index(content: bytes, rng: random.Random) -> bytes:
    """Change values, fields or the shape of a store's index; its checksum fits again, or is missing."""
    table = np.load(io.BytesIO(content)).copy()
    match rng.randrange(8):
        case 0:
            name = rng.choice(table.dtype.names)
            types = [
                (
                    field,
                    rng.choice(("<u4", "<i8", "<f4", "S3", "U3", "?", "V5"))
                    if field == name
                    else table.dtype[field],
                )
                for field in table.dtype.names
            ]
            table = np.zeros(len(table), types)
        case 1:
            table = table[[field for field in table.dtype.names if rng.random() < 0.7]]
        case 2:
            table = rng.choice(
                (table.reshape(1, -1), table[:0], table[::-1], table[rng.randrange(len(table))])
            )
        case 3:
            table = np.concatenate((table, table))
        case _:
            for _ in range(rng.choice((1, 2, 4))):
                name = rng.choice([name for name in table.dtype.names if name not in ("id", "hash")])
                limit = 2 if name in ("scored", "masked") else 2**64 if name == "offset" else 2**32
                value = rng.choice((0, 1, 2, 3, 5, limit // 2, limit - 1)) % limit
                table[name][rng.randrange(len(table))] = value
            table["id"][rng.randrange(len(table))] = rng.choice(
                (b"", b"\n", b"\xff\xfe", b"a", b"i1", b"../x")
            )
    changed = io.BytesIO()
    np.save(changed, table)
    if rng.random() < 0.5:
        changed.write(struct.pack("<4sI", b"CRC1", zlib.crc32(changed.getvalue())))
    return changed.getvalue()


def change_journal(content: bytes, rng: random.Random) -> bytes:
    """Change the facts of one record of a store's journal; its checksum fits again."""
    records = []
    while content:
        length = struct.unpack_from("<I", content)[0]
        records.append(content[8 : 8 + length])
        content = content[8 + length :]
    place = rng.randrange(len(records))
    line, _, numbers = records[place].partition(b"\n")
    records[place] = (
        change_json(line, rng) + b"\n" + (damage(numbers, rng) if rng.random() < 0.3 else numbers)
    )
    return b"".join(struct.pack("<II", len(one), zlib.crc32(one)) + one for one in records)
