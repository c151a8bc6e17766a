"""Writes the reference of all keys: ``docs/configuration.md`` to read, ``configs/schema.json`` for editors.

Both are made from `detector.config.schema`. After a change there, run ``python -m detector.config.reference``
in a checkout; a test fails while they are out of date.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detector.config.schema import Config, Section, SelectiveSearchProposals, sections_of
from detector.core.files import write_text

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENT = PROJECT / "docs" / "configuration.md"
SCHEMA = PROJECT / "configs" / "schema.json"

_INTRODUCTION = """\
# Configuration

Every key of a config file, with its type, its default and its meaning. This page is generated from
[`detector/config/schema.py`](../detector/config/schema.py) by `python -m detector.config.reference`; do not
edit it.

A config is a YAML file. Every tool that takes `--config` also takes overrides such as `train.steps=100` or
`test.scales=[480,600]`; with `--print-config` it prints the resolved config with the origin of each value,
and does nothing else. `--config` takes a path, or the name of a shipped config such as `quickstart`.
`_base_`, at the top of a file, is the path or the name of another config, or a list of them, whose values the
file inherits and may replace.

Only `data.root`, `model.backbone.name`, the length of the training (`train.steps` or `train.epochs`) and, for
detection, a source of proposals have to be given. `null` stands for "not set".

Editors with support for YAML show these descriptions and mark mistakes in a file whose first line is
`# yaml-language-server: $schema=PATH`, with the path or the address of `configs/schema.json`.
"""


def main() -> None:
    write_text(DOCUMENT, document())
    write_text(SCHEMA, json.dumps(editor_schema(), indent=1) + "\n")
    print(f"wrote {DOCUMENT} and {SCHEMA}")


def document() -> str:
    """Return the text of ``docs/configuration.md``."""
    parts = list(_parts("", {"": Config}))
    links = [f"- [`{name}`](#{re.sub(r'[^a-z0-9_-]', '', name)})" for name, _ in parts if name]
    texts = [_INTRODUCTION.rstrip(), "\n".join(["Sections:", "", *links]), *(text for _, text in parts)]
    return "\n\n".join(texts) + "\n"


def _parts(place: str, kinds: dict[str, type[Section]]) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of a section and of all below it, in the order of the schema."""
    sections = list(dict.fromkeys(kinds.values()))
    title = f"## {place}" if place else "## Top level"
    if len(sections) == 1:
        keys = "\n".join(_key(sections, name) for name in _leaves(sections[0]))
        about = [_wrapped(_prose(sections[0].__doc__))] if place else []
        yield place, "\n\n".join(text for text in [title, *about, keys] if text)
    else:
        yield place, "\n\n".join([title, *_side_by_side(kinds)])
    for section in sections:
        for name, field in section.model_fields.items():
            below = sections_of(field.annotation)
            if below:
                listed = "[]" if len(below) > 1 and _properties(section)[name].get("type") == "array" else ""
                yield from _parts(f"{place}.{name}{listed}".lstrip("."), below)


def _leaves(section: type[Section]) -> list[str]:
    return [name for name, field in section.model_fields.items() if not sections_of(field.annotation)]


def _side_by_side(kinds: dict[str, type[Section]]) -> Iterator[str]:
    """Yield the description of a place with kinds, a table of which kind has which key, and each key."""
    tags = {kind: _or([_code(tag) for tag in kinds if kinds[tag] is kind]) for kind in kinds.values()}
    base = next(iter(tags)).__mro__[1]
    yield _wrapped(_prose(base.__doc__))
    yield "\n".join(_wrapped(f"- {tag}: {_prose(kind.__doc__)}") for kind, tag in tags.items())
    names = list(dict.fromkeys(name for kind in tags for name in _leaves(kind)))
    rows = [f"| `{name}` | {' | '.join(_cell(kind, name) for kind in tags)} |" for name in names]
    header = f"| key | {' | '.join(tags.values())} |"
    yield "Defaults by kind; a kind does not have the keys whose cells are empty."
    yield "\n".join([header, "|---" * (len(tags) + 1) + "|", *rows])
    keys = []
    for name in names:
        alike: dict[str, list[type[Section]]] = {}
        for kind in tags:
            if name in kind.model_fields and not _is_null(kind, name):
                alike.setdefault(description(kind, name), []).append(kind)
        for having in alike.values():
            owners = "" if len(having) == len(tags) else _or([tags[kind] for kind in having])
            keys.append(_key(having, name, owners))
    yield "\n".join(keys)
    if SelectiveSearchProposals in tags:
        yield _search_options()


def _search_options() -> str:
    """Return the options of selective search, from the docstring of the class that checks them."""
    from detector.ops import selective_search_config as search

    listed = inspect.cleandoc(search.SelectiveSearchConfig.__doc__ or "").split("Args:")[1]
    for name in ("COLOR_SPACES", "SIMILARITIES"):
        listed = listed.replace(f"``{name}``", ", ".join(map(_code, getattr(search, name))))
    for name, value in {"None": "null", "True": "`true`", "False": "`false`"}.items():
        listed = re.sub(rf"\b{name}\b", value, listed)
    options = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", listed, flags=re.MULTILINE)
    presets = _or([_code(name) for name in search.PRESETS])
    heading = _wrapped(f"Values of `mode` for selective search: {presets}. Its `options`:")
    return "\n".join([heading, "", *(_wrapped(f"- `{name}`: {_prose(text)}") for name, text in options)])


def _cell(section: type[Section], name: str) -> str:
    return "" if name not in section.model_fields or _is_null(section, name) else _default(section, name)


def _is_null(section: type[Section], name: str) -> bool:
    """Return whether null is the only value that the section allows for the key."""
    return bool(_properties(section)[name].get("type") == "null")


def _default(section: type[Section], name: str) -> str:
    field = section.model_fields[name]
    if field.is_required():
        return "required"
    return _code(json.dumps(field.get_default(call_default_factory=True)))


def _key(having: list[type[Section]], name: str, owners: str = "") -> str:
    """Return the entry of a key of the sections ``having``; ``owners`` names them if not all have it."""
    types = _or([text for section in having for text in _types(_properties(section)[name])])
    defaults = dict.fromkeys(_default(section, name) for section in having)
    default = next(iter(defaults)) if len(defaults) == 1 else "see the table"
    default = default if default in ("required", "see the table") else f"default {default}"
    only = f"; {owners} only" if owners else ""
    return _wrapped(f"- **`{name}`** ({types}; {default}{only}): {_prose(description(having[0], name))}")


def description(section: type[Section], name: str) -> str:
    """Return the description of a key.

    Where a kind only narrows the type of a key, this is the description in its base. For a key that holds a
    section it is the description of the section.
    """
    for owner in section.__mro__:
        field = owner.model_fields.get(name) if issubclass(owner, Section) else None
        if field is not None and field.description:
            return field.description
    below = [*sections_of(section.model_fields[name].annotation).values()]
    return (below[0].__mro__[1 if len(below) > 1 else 0].__doc__ or "") if below else ""


def _properties(section: type[Section]) -> dict[str, Any]:
    properties: dict[str, Any] = section.model_json_schema()["properties"]
    return properties


_WORDS = {"integer": "whole number", "string": "text", "boolean": "`true` or `false`", "null": "`null`"}


def _types(node: dict[str, Any], plural: str = "") -> list[str]:
    """Return the types that a value may have, in words with ranges; ``plural`` is "s" in a list."""
    if "anyOf" in node:
        return [text for each in node["anyOf"] for text in _types(each, plural)]
    if "enum" in node or "const" in node:
        return [_code(json.dumps(value)) for value in node.get("enum", [node.get("const")])]
    match node.get("type"):
        case "array" if "prefixItems" in node:
            return [f"list of {len(node['prefixItems'])} {_or(_types(node['prefixItems'][0], 's'))}"]
        case "array":
            length = _range(node, "minItems", "maxItems")
            return [f"list of {_or(_types(node['items'], 's'))}" + (f" ({length} of them)" if length else "")]
        case "object" if isinstance(node.get("additionalProperties"), dict):
            return [f"mapping from names to {_or(_types(node['additionalProperties'], 's'))}"]
        case "object":
            return ["mapping"]
        case "integer" | "number" | "string" as kind:
            return [f"{_WORDS.get(kind, kind)}{plural} {_range(node, 'minimum', 'maximum')}".rstrip()]
        case kind:
            return [_WORDS[str(kind)]]


def _range(node: dict[str, Any], low: str, high: str) -> str:
    bounds = {low: "at least", "exclusiveMinimum": "above", high: "at most", "exclusiveMaximum": "below"}
    given = {name: f"{node[name]:,}".removesuffix(".0") for name in bounds if name in node}
    if low in given and high in given:
        return f"from {given[low]} to {given[high]}"
    return " and ".join(f"{bounds[name]} {value}" for name, value in given.items())


def _or(texts: list[str]) -> str:
    *first, last = dict.fromkeys(texts)
    return f"{', '.join(first)} or {last}" if first else last


def _prose(text: str | None) -> str:
    text = re.sub(r"`+", "`", " ".join(inspect.cleandoc(text or "").split()))
    return re.sub(r"(?<![`\w])null(?![`\w])", "`null`", text)


def _wrapped(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _code(text: str) -> str:
    return f"`{text}`"


def editor_schema() -> dict[str, Any]:
    """Return the JSON Schema of a config file, which may have ``_base_`` and leave out any inherited key."""
    whole = Config.model_json_schema()
    sections = {section.__name__: section for section in _sections_below(Config)} | {"Config": Config}
    parts = {"Config": whole, **whole.pop("$defs")}
    for name, part in parts.items():
        for key, node in part["properties"].items():
            node["description"] = description(sections[name], key)
            if key == "settings":
                node |= {"$ref": "#/$defs/Settings", "additionalProperties": True}
    properties = whole["properties"]
    inherited = {
        "description": "The config that this one inherits from, or a list of them: paths or shipped names.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    settings = {key: node for key, node in properties.items() if key != "stages"}
    parts["Settings"] = {"type": "object", "additionalProperties": False, "properties": settings}
    del parts["Config"]
    changes = {"properties": {"_base_": inherited, **properties}, "$defs": parts}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **_for_editors(whole | changes)}


def _sections_below(section: type[Section]) -> Iterator[type[Section]]:
    for field in section.model_fields.values():
        for below in sections_of(field.annotation).values():
            yield below
            yield from _sections_below(below)


def _for_editors(node: Any) -> Any:
    """Return ``node`` with nothing required, alternatives that may overlap, and without titles."""
    if isinstance(node, list):
        return [_for_editors(each) for each in node]
    if not isinstance(node, dict):
        return node
    changed: dict[str, Any] = {}
    for name, value in node.items():
        match name:
            case "required" | "title":
                continue
            case "default" if isinstance(value, dict):
                continue
            case "oneOf":
                changed["anyOf"] = _for_editors(value)
            case "prefixItems":  # editors know "items" better, and all items are alike
                changed["items"] = _for_editors(value[0])
            case "description":
                changed[name] = _prose(value).replace("`", "")
            case "properties" | "$defs":  # whose keys are names
                changed[name] = {key: _for_editors(each) for key, each in value.items()}
            case _:
                changed[name] = _for_editors(value)
    return changed


if __name__ == "__main__":
    main()
