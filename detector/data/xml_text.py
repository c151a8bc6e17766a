"""The text of an XML file by the encoding that it declares, or that its first bytes show.

The XML parser of Python's library knows only single-byte encodings, UTF-8 and UTF-16; annotation tools
also write those of East Asia. Only encodings from a fixed list are used, none that Python's registry of
codecs might have besides.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from detector.core.errors import InputError

# Where a file says more than its declared encoding has, tools mean the superset (WHATWG, Encoding Standard).
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}
_ALLOWED = frozenset(
    (
        *("utf-8", "ascii", "utf-16", "utf-16-le", "utf-16-be", "gb18030", "gb2312", "gbk", "big5"),
        *("big5hkscs", "cp950", "shift_jis", "cp932", "euc_jp", "iso2022_jp", "euc_kr", "cp949"),
        *("koi8-r", "koi8-u", "mac-roman", "tis-620", "cp437", "cp850", "cp866", "cp874"),
        *(f"cp125{number}" for number in range(9)),
        *(f"iso8859-{number}" for number in range(1, 17) if number != 12),
    )
)
_MARKS = (  # the four-byte marks begin like the two-byte ones
    (codecs.BOM_UTF32_LE, None),
    (codecs.BOM_UTF32_BE, None),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (b"<\0?\0", "utf-16-le"),  # without a mark (XML 1.0, appendix F)
    (b"\0<\0?", "utf-16-be"),
)
_DECLARATION = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([^"'>]*)["']""")


def decode_xml(content: bytes, path: Path) -> str:
    """Return the text of ``content``, the bytes of the file at ``path``, without a byte-order mark.

    Raises InputError, which names the file, for an encoding that is not known or does not fit the bytes.
    """
    encoding = _shown(content, path) or _declared(content, path)
    try:
        return content.decode(_SUPERSETS.get(encoding, encoding)).removeprefix("\ufeff")
    except UnicodeError as error:
        raise InputError(
            f"{path}: not in {encoding}, the encoding that the file declares or XML's default ({error}); "
            "save it in UTF-8 and declare that"
        ) from None


def _shown(content: bytes, path: Path) -> str | None:
    """Return the encoding that the first bytes show by themselves."""
    for start, encoding in _MARKS:
        if content.startswith(start):
            if encoding is None:
                raise InputError(f"{path}: the file is in UTF-32, which is not read; save it in UTF-8")
            return encoding
    return None


def _declared(content: bytes, path: Path) -> str:
    found = _DECLARATION.match(content[:1024])
    if found is None:
        return "utf-8"
    name = found[1].decode("ascii", errors="replace")
    try:
        encoding = codecs.lookup(name).name
    except (LookupError, ValueError):
        encoding = ""
    if encoding not in _ALLOWED or encoding.startswith("utf-16"):  # that would have shown
        raise InputError(
            f"{path}: not well-formed XML: it declares the encoding {name[:40]!r}, which is not known or not "
            "the file's own; save the file in UTF-8 and declare that"
        )
    return encoding
