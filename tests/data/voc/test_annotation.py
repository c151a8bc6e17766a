"""One annotation file: spellings, encodings, and objects that must not be ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.core.errors import InputError
from detector.data.file_columns import FileAnnotation
from detector.data.voc.annotation import MAX_COPIED, read_annotation

SIZE = "<size><width>100</width><height>80</height></size>"
BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
OTHER = "<bndbox><ymax>9</ymax><xmax>9.5</xmax><ymin>5</ymin><xmin>4.25</xmin></bndbox>"
CAR = f"<object><name>car</name>{BOX}</object>"


def read(tmp_path: Path, text: str | bytes) -> FileAnnotation:
    path = tmp_path / "a.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_annotation(path)


def test_every_box_of_an_object_is_an_object(tmp_path: Path) -> None:
    many = f"<object><name>cat</name>{BOX}<difficult>1</difficult>{OTHER}{BOX}</object>"
    found = read(tmp_path, f"<annotation>{SIZE}{CAR}{many}</annotation>").objects
    assert [(one.name, one.difficult) for one in found] == [("car", False), *[("cat", True)] * 3]
    first, second = (1, 2, 30, 40), (4.25, 5, 9.5, 9)
    assert [one.written for one in found] == [first, first, second, first]
    places = ["object 1 (car)", *(f"object 2 (cat), box {number}" for number in (1, 2, 3))]
    assert [one.place for one in found] == places


@pytest.mark.parametrize(
    "text",
    [
        f"<annotation>{SIZE}{CAR}</annotation>",
        f"<annotation>{SIZE}{CAR.replace('object', 'Object')}</annotation>",
        f"<annotation>{SIZE}<objects>{CAR}</objects></annotation>",
        f"<Annotation>{SIZE}<Objects>{CAR.replace('object', 'OBJECT')}</Objects></Annotation>",
        f"<annotation>{SIZE}{CAR}</annotation>".upper().replace("CAR", "car"),
        f'<v:annotation xmlns:v="u">{SIZE}{CAR}</v:annotation>'.replace("object", "v:object"),
    ],
)
def test_spellings_of_the_elements(tmp_path: Path, text: str) -> None:
    found = read(tmp_path, text)
    assert found.size == (80, 100)
    assert [(one.name, one.written) for one in found.objects] == [("car", (1, 2, 30, 40))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"<things>{CAR}</things>", "<object> in <things>"),
        (f"<annotation>{CAR}</annotation>", "<object> in <annotation>"),
        (f"<objects>{CAR}<count>1</count></objects>", "<object> in <objects>"),
        (f"<item><name>car</name>{BOX}</item>", "<bndbox> in <item>"),
        (f"<object><name>a</name>{BOX}<object><name>b</name>{BOX}</object></object>", "<object> in <object>"),
        (f"<object><name>a</name>{BOX}<more>{BOX}</more></object>", "<bndbox> in <more>"),
        (f"<object><name>a</name>{BOX}<xmin>3</xmin></object>", "<xmin> in <object>"),
        ("<item><xmin>1</xmin></item>", "<xmin> in <item>"),
        ("<object><name>a</name><xmin>1</xmin></object>", r"object 1 \(a\) has no <bndbox>;"),
        ("<object><name>a</name><polygon><x1>1</x1></polygon></object>", "no <bndbox> but a polygon"),
        ("<object><name>a</name><robndbox><cx>1</cx></robndbox></object>", "no <bndbox> but a rotated box"),
        (CAR.replace("<xmin>", "<xmin>7</xmin><xmin>"), r"\(car\) has 2 <xmin> that differ"),
        (CAR.replace("1</xmin>", "1_0</xmin>"), "<xmin> is '1_0'"),
        (f"{SIZE}{SIZE}", "has 2 <size>"),
        ("<object><name>a</name><ignore>no</ignore>" + BOX + "</object>", "<ignore> is 'no'"),
    ],
)
def test_what_would_be_passed_by_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, f"<annotation>{content}</annotation>")
    assert str(error.value).startswith(f"{tmp_path / 'a.xml'}: ")


def test_parts_of_an_object_are_no_objects(tmp_path: Path) -> None:
    part = f"<part><name>head</name>{OTHER}</part>"
    text = f"<annotation>{CAR.replace('</object>', part + '<point><x>1</x></point></object>')}</annotation>"
    assert len(read(tmp_path, text).objects) == 1


def test_boxes_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    number = int(MAX_COPIED**0.5)
    with pytest.raises(InputError, match=rf"object 1 has {number} <bndbox>"):
        read(tmp_path, f"<annotation><object>{'<a/>' * number}{'<bndbox/>' * number}</object></annotation>")


@pytest.mark.parametrize(
    ("declared", "codec", "name"),
    [
        ("gb2312", "gb2312", "红"),
        ("GB2312", "gbk", "紅镕"),  # tools write more than the declared encoding has
        ("GBK", "gbk", "红"),
        ("gb18030", "gb18030", "红𠀀"),
        ("Big5", "big5", "紅"),
        ("Shift_JIS", "cp932", "赤①"),
        ("euc-jp", "euc_jp", "赤"),
        ("euc-kr", "cp949", "빨강똠"),
        ("windows-1251", "cp1251", "кот"),
        ("ISO-8859-2", "iso8859-2", "kůň"),
        ("utf-8", "utf-8-sig", "红"),
        ("utf-16", "utf-16", "红"),
        ("utf-16", "utf-16-le", "红"),  # without a mark
        ("UTF-16", "utf-16-be", "红"),
    ],
)
def test_the_declared_encoding_is_read(tmp_path: Path, declared: str, codec: str, name: str) -> None:
    text = f'<?xml version="1.0" encoding="{declared}"?>\n<annotation>{CAR.replace("car", name)}</annotation>'
    assert [one.name for one in read(tmp_path, text.encode(codec)).objects] == [name]


@pytest.mark.parametrize(
    ("declared", "codec", "message"),
    [
        ("utf-8", "gbk", "not in utf-8, the encoding that the file declares"),
        ("gb2312", "latin-1", "not in gb2312"),
        ("utf-7", "utf-8", "'utf-7', which is not known"),
        ("rot13", "utf-8", "'rot13', which is not known"),
        ("hex", "ascii", "'hex', which is not known"),
        ("unicode_escape", "ascii", "'unicode_escape', which is not known"),
        ("utf-16", "utf-8", "'utf-16', which is not known or not the file's own"),
        ("utf-32", "utf-32", "in UTF-32"),
    ],
)
def test_another_encoding_is_one_error(tmp_path: Path, declared: str, codec: str, message: str) -> None:
    name = {"gbk": "红", "latin-1": "ÿ"}.get(codec, "car")
    text = f'<?xml version="1.0" encoding="{declared}"?><annotation>{CAR.replace("car", name)}</annotation>'
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, text.encode(codec))
    assert str(error.value).startswith(f"{tmp_path / 'a.xml'}: ")
