"""Explains the mistakes in a config, each in one line: the file, the key, the value, and what to write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from detector.config.schema import Kind, Section, sections_of
from detector.core.errors import nearest

MAX_ERRORS = 20
"""How many mistakes are shown at a time."""


def explain(error: ValidationError, root: type[Section], source: str) -> str:
    """Return the mistakes that pydantic found in a config from ``source``, checked against ``root``."""
    mistakes = error.errors()
    lists = [_find_place(item["loc"], root)[0] for item in mistakes if item["type"] == "tuple_type"]
    mistakes = [  # of the choice between a name and a list, the hint for the list is enough
        item
        for item in mistakes
        if item["type"] != "literal_error" or _find_place(item["loc"], root)[0] not in lists
    ]
    lines = [_line(source, item, root) for item in mistakes[:MAX_ERRORS]]
    if len(mistakes) > MAX_ERRORS:
        lines.append(f"{source}: and {len(mistakes) - MAX_ERRORS} more")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return ``repr(value)`` for a message, shortened where it is long."""
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python refuses to write integers of more than 4300 digits
        text = f"a {type(value).__name__} too long to be written"
    return text if len(text) <= 80 else text[:77] + "..."


def _find_place(location: tuple[Any, ...], root: type[Section]) -> tuple[list[str], type[Section]]:
    """Return the keys that lead to a mistake, and the last section on the way.

    Pydantic's ``location`` also has the tags of kinds and parts such as ``tuple[str, ...]``.
    """
    keys: list[str] = []
    section, choices = root, dict[str, type[Section]]()
    for part in location:
        if part in choices:
            section, choices = choices[part], {}
            continue
        text = f"{part!s:.100}"
        if text.isdigit() or (text.isidentifier() and text not in {"int", "str", "float", "bool"}):
            keys.append(text)
        field = section.model_fields.get(text)
        if field is not None:
            choices = sections_of(field.annotation)
            section = choices.get("", section)
    return keys, section


def _line(source: str, item: Any, root: type[Section]) -> str:
    keys, section = _find_place(item["loc"], root)
    key, value, context = ".".join(keys) or "the config", item["input"], item.get("ctx", {})
    message = item["msg"].removeprefix("Value error, ")
    match item["type"]:
        case "extra_forbidden":
            parents, section = _find_place(item["loc"][:-1], root)
            return f"{source}: {_unknown_key(parents, section, str(item['loc'][-1])[:100])}"
        case "missing":
            return f"{source}: {key}: missing; this key is required"
        case "union_tag_not_found" if isinstance(value, Mapping):
            return f"{source}: {key}.kind: missing; this key is required"
        case "union_tag_not_found" | "model_type" | "dict_type":
            message = f"expected keys below it; write {key}.KEY=VALUE or {key}={{KEY: VALUE}}"
        case "union_tag_invalid":
            choices = re.findall(r"'([^']*)'", context["expected_tags"])
            key, value = f"{key}.kind", context["tag"]
            message = f"expected {' or '.join(map(repr, choices))}{nearest(value, choices)}"
        case "literal_error":
            choices = re.findall(r"'([^']*)'", context["expected"])
            message = f"expected {context['expected']}{nearest(str(value), choices)}"
        case "tuple_type":
            message = f"expected a list{_list_hint(key, section.model_fields.get(keys[-1]), value)}"
        case _:
            if isinstance(value, Mapping) and item["type"] == "value_error":
                return f"{source}: {message}"  # it names the keys that it is about
            message = _EXPECTED.get(item["type"], message) + _correction(item["type"], key, value)
    return f"{source}: {key} = {shown(value)}: {message}"


_EXPECTED = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "string_type": "expected a text",
    "bool_type": "expected true or false",
    "too_short": "expected at least one value",
}


def _unknown_key(parents: list[str], section: type[Section], name: str) -> str:
    key = ".".join([*parents, name])  # as it is written, even if no key can have this form
    valid = sorted(section.model_fields)
    if not issubclass(section, Kind):
        return f"{key}: unknown key{nearest(name, valid)}; valid here: {', '.join(valid)}"
    others = section.kinds_with(name)
    if others:
        having = " or ".join(kind.choice for kind in others)
        return f"{key}: {section.choice} has no key {name!r}; {having} has it"
    return f"{key}: unknown key{nearest(name, valid)}; {section.choice} has {', '.join(valid)}"


def _list_hint(key: str, field: FieldInfo | None, value: Any) -> str:
    """Return how to write a single value as the list that is expected."""
    if value is None or isinstance(value, Mapping):
        return ""
    types = [field.annotation, *get_args(field.annotation)] if field else []
    items = next((get_args(each) for each in types if get_origin(each) is tuple), (Ellipsis,))
    text = str(value)[:80]
    if Ellipsis in items or len(items) == 1:
        return f"; write {key}=[{text}]"
    return f" of {len(items)} values; write {key}=[{text}, ...]"


def _correction(error: str, key: str, value: Any) -> str:
    """Return what to write instead of ``value``, where its type is wrong and its meaning is clear."""
    if isinstance(value, tuple) and len(value) == 1 and error.endswith("_type"):
        return f"; write {key}={_yaml(value[0])}"
    match error, value:
        case "int_type" | "int_from_float", float() if value.is_integer():
            return f"; write {key}={value:.0f}"
        case "int_type" | "float_type", str() if _NUMBER.fullmatch(value):
            return f"; write {key}={value}, without quotes"
        case "bool_type", int() | str():
            return f"; write {key}=true or {key}=false"
        case "string_type", bool() | int() | float():
            text = _yaml(value)
            return f"; write it in quotes: '{text}' in a file, '{key}=\"{text}\"' on the command line"
    return ""


_NUMBER = re.compile(r"[-+]?\d{1,20}(\.\d{0,20})?([eE][-+]?\d{1,3})?")


def _yaml(value: Any) -> str:
    return json.dumps(value, default=str)[:80]
