"""Reading an XML file that is not trusted: its encoding, limits of size and depth, no entities.

The XML parser of Python's library knows only single-byte encodings, UTF-8 and UTF-16; annotation tools also
write the encodings of East Asia. Only encodings from a fixed list are accepted, not every codec of Python's
registry.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from detector.core.errors import InputError
from detector.core.files import read_limited_bytes

MAX_BYTES = 10 * 2**20
MAX_DEPTH = 32  # elements within elements; VOC itself needs 5

# Tools that declare one of these encodings mean its superset (WHATWG, Encoding Standard).
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
_MARKS = (  # four-byte marks first: they begin like the two-byte ones
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (b"<\0?\0", "utf-16-le"),  # without a mark (XML 1.0, appendix F)
    (b"\0<\0?", "utf-16-be"),
)
_DECLARATION = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([^"'>]*)["']""")


def decode_xml(content: bytes, path: Path) -> str:
    """Return the text of ``content``, the bytes of the file at ``path``, without a byte-order mark.

    The encoding is the one that the first bytes show, otherwise the declared one, otherwise UTF-8.

    Raises InputError, which names the file, for an encoding that is unknown or does not fit the bytes.
    """
    marked = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), None)
    if marked == "utf-32":
        raise InputError(f"{path}: the file is in UTF-32, which is not read; save it in UTF-8")
    encoding = marked or _declared_encoding(content, path)
    try:
        return content.decode(_SUPERSETS.get(encoding, encoding)).removeprefix("\ufeff")
    except UnicodeError as error:
        raise InputError(
            f"{path}: not in {encoding}, the encoding that the file declares or XML's default ({error}); "
            "save it in UTF-8 and declare that"
        ) from None


def _declared_encoding(content: bytes, path: Path) -> str:
    declaration = _DECLARATION.match(content[:1024])
    if declaration is None:
        return "utf-8"
    name = declaration[1].decode("ascii", errors="replace")
    try:
        encoding = codecs.lookup(name).name
    except (LookupError, ValueError):
        encoding = ""
    if encoding not in _ALLOWED or encoding.startswith("utf-16"):  # its first bytes would have shown it
        raise InputError(
            f"{path}: not well-formed XML: it declares the encoding {name[:40]!r}, which is not known or not "
            "the file's own; save the file in UTF-8 and declare that"
        )
    return encoding


def parse_xml(path: Path) -> Element:
    """Return the outer element of the XML file at ``path``.

    Document type declarations are refused, and with them both expanding and external entities; so are files
    over 10 MiB and elements nested more than 32 deep.

    Raises:
        InputError: the file cannot be read, is refused, or is not well-formed.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise InputError(f"{path}: elements are nested more than {MAX_DEPTH} deep; refused")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse_doctype(*_: object) -> None:
        raise InputError(
            f"{path}: has a document type declaration (<!DOCTYPE ...>), which can hide entity bombs; "
            "refused: remove the declaration"
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse_doctype
    try:
        parser.Parse(decode_xml(read_xml_bytes(path), path), True)
    except (expat.ExpatError, UnicodeError) as error:  # UnicodeError: characters that cannot be encoded
        raise InputError(f"{path}: not well-formed XML: {error}; correct or remove the file") from None
    return builder.close()


def read_xml_bytes(path: Path) -> bytes:
    """Return the bytes of an annotation file. Raises InputError if it cannot be read or is over 10 MiB."""
    return read_limited_bytes(path, "the annotation", MAX_BYTES)
