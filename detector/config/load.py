"""Reading a config: YAML, ``_base_`` inheritance and ``key=value`` overrides, with errors that help.

``_base_`` is a path, or a list of paths, relative to the file that names it; later ones win and the file
itself wins over all. Mappings are merged key by key, except that a ``proposals`` mapping which names a
``file`` or a ``method`` replaces the inherited source (another ``file`` keeps the ``format``). An override
is ``section.key=value`` with a YAML value, for instance ``train.steps=100`` or ``test.scales=[480,600]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from detector.config.schema import Config
from detector.config.sections.base import Section
from detector.config.sections.proposals import ProposalsConfig
from detector.config.sections.training import StageConfig
from detector.errors import InputError, nearest

Checked = TypeVar("Checked", bound=Section)

MAX_BYTES = 1 << 20
"""A config is a page of text; anything larger is not one."""
MAX_ERRORS = 20
"""As many mistakes are shown at a time."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the config at ``path``, apply ``key=value`` overrides and check everything.

    Raises:
        InputError: naming the file, the key, the value, what was expected and the nearest valid key.
    """
    path = Path(path)
    return parse_config(override(_read_with_bases(path, seen=()), overrides), source=str(path))


def override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``values`` with each ``key=value`` of ``overrides`` applied, in order."""
    for text in overrides:
        values = _apply_override(values, text)
    return values


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """Check a mapping, for instance a config kept in a checkpoint; ``source`` is named in errors."""
    config = _checked(Config, values, source)
    for stage in config.stages:
        stage_config(config, stage, f"{source}: stages: {stage.name}")
    return config


class _ProposalsAlone(Section):
    proposals: ProposalsConfig


def parse_proposals(values: Mapping[str, Any], source: str) -> ProposalsConfig:
    """Check a mapping with ``proposals`` alone, for tools that need no whole config."""
    return _checked(_ProposalsAlone, values, source).proposals


def _checked(section: type[Checked], values: Mapping[str, Any], source: str) -> Checked:
    _refuse_unusable_texts(values, source)
    try:
        return section.model_validate(_with_tuples(values))
    except ValidationError as error:
        found = error.errors()
        lines = [_explain(source, item) for item in found[:MAX_ERRORS]]
        if len(found) > MAX_ERRORS:
            lines.append(f"{source}: and {len(found) - MAX_ERRORS} more")
        raise InputError("\n".join(lines)) from None


def _refuse_unusable_texts(value: Any, source: str, key: str = "") -> None:
    """Raise InputError for a text that can be no path, name or line of output."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_unusable_texts(name, source, key)
            _refuse_unusable_texts(item, source, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_unusable_texts(item, source, key)
    elif isinstance(value, str):
        try:
            value.encode("utf-8", "surrogateescape")  # so the shell's bytes that are no UTF-8 pass
            usable = "\0" not in value
        except UnicodeEncodeError:
            usable = False
        if not usable:
            raise InputError(
                f"{source}: {key or 'a key'} = {_shown(value)}: holds a null character or half a surrogate "
                "pair, which no path or name can have; remove it"
            )


def stage_config(config: Config, stage: StageConfig, source: str = "the config") -> Config:
    """Return the config that one stage of a staged training runs with: its settings over the rest.

    Raises:
        InputError: settings that no config may have; ``source`` is named.
    """
    whole = config.model_dump(mode="json", exclude={"stages"})
    return parse_config(_merge(whole, stage.settings), source)


def _read_with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise InputError(f"{path}: _base_ leads back to this file; remove the circle")
    values = read_yaml(path)
    bases = values.pop("_base_", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: _base_ must be a path or a list of paths, not {bases!r}")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = _merge(merged, _read_with_bases(path.parent / base, (*seen, path.resolve())))
    return _merge(merged, values)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        InputError: missing, too large, or not a mapping of names.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such config file")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES} bytes, which no config is")
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the config: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: not readable as YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{path}: a config is a mapping of names to values")
    return values


def _parse(text: str) -> Any:
    """Parse YAML; whatever the library trips over comes out as ValueError with a reason of one line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("brackets or blocks nested too deeply") from None
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:
        # The library's constructors raise the last three, for instance at a date with a 13th month.
        raise ValueError(" ".join(str(error).split())[:300]) from None


class _Loader(yaml.SafeLoader):
    """The safe loader, refusing a key that stands twice and aliases (which can expand without end)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} twice", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not allowed in a config", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)


# YAML 1.1, as the library reads it, takes 1e-3 for a string; everybody who writes it means a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _merge(base: dict[str, Any], top: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    if key == "proposals" and {"file", "method"} & set(top):
        # Another source replaces the inherited one with its options; limits such as top-k are kept.
        kept = {"top_k_train", "top_k_test", "min_size", "missing", "faults"}
        if "method" not in top:
            kept |= {"format", "convention"}  # another file of the same kind
        base = {name: value for name, value in base.items() if name in kept}
    if key == "pool" and "kind" in top and top["kind"] != base.get("kind", "roi"):
        base = {}  # another kind of pooling has other keys
    merged = dict(base)
    for name, value in top.items():
        both = isinstance(merged.get(name), dict) and isinstance(value, dict)
        merged[name] = _merge(merged[name], value, name) if both else value
    return merged


def _apply_override(values: dict[str, Any], written: str) -> dict[str, Any]:
    name, equals, text = written.partition("=")
    keys = name.split(".")
    if not equals or not all(keys):
        raise InputError(f"override {written!r}: write it as section.key=value")
    try:
        value = _parse(text)
    except ValueError:
        raise InputError(f"override {written!r}: the value is not readable as YAML") from None
    nested: dict[str, Any] = {keys[-1]: value}
    for key in reversed(keys[:-1]):
        nested = {key: nested}
    return _merge(values, nested)


def _with_tuples(value: Any) -> Any:
    """YAML knows lists alone; the frozen schema holds tuples."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_with_tuples(item) for item in value)
    return value


def _explain(source: str, item: Any) -> str:
    keys = [str(part) for part in item["loc"]]
    if item["type"] == "extra_forbidden":
        *section, name = keys
        valid = _names_at(section)
        key = ".".join([*_known(section), name])  # as written, even where no key can look like it
        return f"{source}: {key}: unknown key{nearest(name, valid)}; valid here: {', '.join(sorted(valid))}"
    key = ".".join(_known(keys)) or "the config"
    if item["type"] == "missing":
        return f"{source}: {key}: missing; it has to be given"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "tuple_type":
        message = f"expected a list{_list_hint(list(_known(keys)), item['input'])}"
    if item["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        message += nearest(str(item["input"]), choices)
    return f"{source}: {key} = {_shown(item['input'])}: {message}"


def _list_hint(keys: list[str], value: Any) -> str:
    """Return how to write a single value that stands where the list of ``keys`` is expected."""
    if value is None or isinstance(value, Mapping):
        return ""
    length = _fixed_length(keys)
    return f"; write [{value}]" if length in (None, 1) else f" of {length} values; write [{value}, ...]"


def _fixed_length(keys: list[str]) -> int | None:
    """Return how many values a list has to have, None where any number will do."""
    field = _section_at(keys[:-1]).model_fields.get(keys[-1]) if keys else None
    kinds = [field.annotation, *get_args(field.annotation)] if field else []
    lists = [get_args(kind) for kind in kinds if get_origin(kind) is tuple]
    return None if not lists or Ellipsis in lists[0] else len(lists[0])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _known(keys: list[str]) -> Iterator[str]:
    """Leave out pydantic's own path parts, such as ``tuple[str, ...]`` for a branch of a union."""
    for key in keys:
        if key.isdigit() or (key.isidentifier() and key not in {"int", "str", "float", "bool"}):
            yield key


def _names_at(keys: list[str]) -> list[str]:
    return list(_section_at(keys).model_fields)


def _section_at(keys: list[str]) -> type[BaseModel]:
    section: type[BaseModel] = Config
    for key in keys:
        field = section.model_fields.get(key)
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        found = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if found:
            section = found[0]
    return section
