"""Reading a config: YAML, ``_base_`` inheritance and ``key=value`` overrides, with errors that help.

``_base_`` is a path, or a list of paths, relative to the file that names it; later ones win and the file
itself wins over all. Mappings are merged key by key, except that a ``proposals`` mapping which names a
``file`` or a ``method`` replaces the inherited source (another ``file`` keeps the ``format``), and of
``train.steps`` and ``train.epochs`` the one that is named replaces the other. Another name of
``model.backbone`` does not inherit ``stage`` and ``feature_scale``. An override is ``section.key=value``
with a YAML value, for instance ``train.steps=100`` or ``test.scales=[480,600]``.

**A config file is code of whoever wrote it**: ``proposals.method: module:function`` imports the module and
calls the function, and paths in it are read. Read a stranger's config before you use it. A checkpoint is
data: a name that leads to code is followed only where the user's own command line, or the config file named
on it, says so, and never because the config that is kept in a checkpoint does (`parse_stored`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from detector.config.schema import Config
from detector.config.sections.base import Section
from detector.config.sections.proposals import ProposalsConfig
from detector.config.sections.training import StageConfig
from detector.core.errors import InputError, nearest

Checked = TypeVar("Checked", bound=Section)

MAX_BYTES = 1 << 20
"""A config is a page of text; anything larger is not one."""
MAX_FILES = 64
"""A config and its bases, together."""
SUFFIXES = (".yaml", ".yml")
"""Of bases."""
MAX_STORED_INPUT = 2**24
"""Pixels of a test image at all scales that a checkpoint may ask for by itself; SPP-net's five scales take
half of it."""
MAX_ERRORS = 20
"""As many mistakes are shown at a time."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the config at ``path``, apply ``key=value`` overrides and check everything.

    Raises:
        InputError: naming the file, the key, the value, what was expected and the nearest valid key.
    """
    path = Path(path)
    return parse_config(override(_Reader().read(path, seen=()), overrides), source=str(path))


def override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``values`` with each ``key=value`` of ``overrides`` applied, in order."""
    for text in overrides:
        values = _apply_override(values, text)
    return values


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """Check a mapping of the user's; ``source`` is named in errors. For a checkpoint's see `parse_stored`."""
    config = _checked(Config, values, source)
    for stage in config.stages:
        stage_config(config, stage, f"{source}: stages: {stage.name}")
    return config


def parse_stored(
    values: Mapping[str, Any], overrides: Sequence[str], source: str, *, allow_code: Collection[str] = ()
) -> Config:
    """Check the config that the checkpoint ``source`` keeps, with the user's ``overrides`` applied.

    The functions that it names are not called, except those that ``allow_code`` lists: a checkpoint is data.
    Its number of loader processes is not taken over, since it says nothing about this machine.

    Raises:
        InputError: as `parse_config`, and for a name that leads to code, or test images of over
            `MAX_STORED_INPUT` pixels at all scales, which ``overrides`` do not give.
    """
    config = parse_config(override(dict(values), ["data.workers=null", *overrides]), source)
    own = override({}, overrides)
    if "test" not in own and config.test.input_pixels > MAX_STORED_INPUT:
        raise InputError(
            f"{source}: the config in this checkpoint tests on images of {config.test.input_pixels} pixels, "
            f"which takes many gigabytes; give smaller test.scales, or these, on the command line"
        )
    named = own["proposals"].get("method") if isinstance(own.get("proposals"), dict) else None
    found = {"proposals.method": config.proposals}
    if "stages" not in own:
        found |= {f"stages: {stage.name}": stage_config(config, stage).proposals for stage in config.stages}
    for key, proposals in found.items():
        if proposals.calls_function and proposals.method not in (named, *allow_code):
            raise InputError(_refusal(source, key, str(proposals.method)))
    return config


def _refusal(source: str, key: str, method: str) -> str:
    allowed = "stages=[]" if key.startswith("stages") else "proposals.method=..."
    return (
        f"{source}: the config in this checkpoint has {key} = {method!r:.80}, a name that leads to code, and "
        "a checkpoint may not choose code that runs here. If you know and trust it, say so on the command "
        f"line with {allowed} (tools/demo.py: --set {allowed}), or in Python with "
        f"Detector.load(..., allow_code=[{method!r:.80}]); a method such as selective_search needs no trust"
    )


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
    if "stages" in stage.settings:
        raise InputError(f"{source}: stages: {stage.name}: a stage has no stages of its own; remove them")
    whole = config.model_dump(mode="json", exclude={"stages"})
    return parse_config(_merge(whole, stage.settings), source)


def require_stage(config: Config, name: str) -> None:
    """Raise InputError where ``--stage`` names a stage that the config does not have."""
    names = [stage.name for stage in config.stages]
    if not names:
        raise InputError(f"--stage {name}: the config has no stages; leave --stage out")
    if name not in names:
        raise InputError(f"--stage {name}: the config's stages are {', '.join(names)}")


class _Reader:
    """Reads a config and its bases, up to a number of files and bytes in all."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0

    def read(self, path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
        """Return the merged mapping of the file and its bases; ``seen`` are the files that led here."""
        if path.resolve() in seen:
            raise InputError(f"{path}: _base_ leads back to this file; remove the circle")
        if seen and path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path}: _base_ names this file; a base ends with {' or '.join(SUFFIXES)}")
        values = read_yaml(path, quote=not seen)
        unknown = len(set(values) - set(Config.model_fields) - {"_base_"})
        if seen and unknown:  # counted and not named: it may be any file
            raise InputError(
                f"{path}: _base_ names this file, which has {unknown} sections that no config has; "
                f"a config has {', '.join(Config.model_fields)}"
            )
        self._count(path)
        bases = values.pop("_base_", [])
        if isinstance(bases, str):
            bases = [bases]
        if not isinstance(bases, list) or not all(_is_path(base) for base in bases):
            given = f", not {_shown(bases)}" if not seen else ""
            raise InputError(f"{path}: _base_ must be a path or a list of paths{given}")
        merged: dict[str, Any] = {}
        for base in bases:
            merged = _merge(merged, self.read(path.parent / base, (*seen, path.resolve())))
        return _merge(merged, values)

    def _count(self, path: Path) -> None:
        self.files += 1
        self.bytes += path.stat().st_size
        if self.files > MAX_FILES or self.bytes > MAX_BYTES:
            raise InputError(
                f"{path}: _base_ leads to more than {MAX_FILES} files or {MAX_BYTES} bytes in all; name each "
                "base once"
            )


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def read_yaml(path: Path, *, quote: bool = True) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Without ``quote`` an error says where the mistake is and of what kind, and repeats nothing of the file:
    another file than a config may be named as one.

    Raises:
        InputError: missing, too large, or not a mapping of names.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such config file")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than {MAX_BYTES} bytes, which no config is")
        values = _parse(path.read_text(encoding="utf-8"), quote=quote)
    except OSError as error:
        raise InputError(f"{path}: cannot read the config: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not readable as YAML: byte {error.start} is not UTF-8") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: not readable as YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{path}: a config is a mapping of names to values")
    return values


def _parse(text: str, *, quote: bool = True) -> Any:
    """Parse YAML; whatever the library trips over comes out as ValueError with a reason of one line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("brackets or blocks nested too deeply") from None
    except yaml.MarkedYAMLError as error:  # its own text has lines of the file
        mark = error.problem_mark or error.context_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem if quote else _KINDS.get(type(error), "a mistake")
        raise ValueError(f"{' '.join(str(problem).split())[:200]}{place}") from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"a character at {error.position} that YAML does not allow") from None
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:
        # The library's constructors raise the last three, for instance at a date with a 13th month.
        reason = " ".join(str(error).split())[:200] if quote else "a value that is not of its type"
        raise ValueError(reason) from None


_KINDS = {
    yaml.scanner.ScannerError: "a mistake of the syntax",
    yaml.parser.ParserError: "a mistake of the syntax",
    yaml.composer.ComposerError: "an alias, or more than one document",
    yaml.constructor.ConstructorError: "a tag that is not known, or a key that is there twice",
}


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
    if key == "backbone" and top.get("name", base.get("name")) != base.get("name"):
        base = {name: value for name, value in base.items() if name not in ("stage", "feature_scale")}
    if key == "train":
        base = {name: value for name, value in base.items() if name not in _replaced_length(top)}
    merged = dict(base)
    for name, value in top.items():
        both = isinstance(merged.get(name), dict) and isinstance(value, dict)
        merged[name] = _merge(merged[name], value, name) if both else value
    return merged


def _replaced_length(top: Mapping[str, Any]) -> set[str]:
    """Return which of ``train``'s two lengths gives way to the other one, which ``top`` names."""
    named = {name for name in ("steps", "epochs") if top.get(name) is not None}
    return {"steps", "epochs"} - named if named else set()


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
    keys = [f"{part!s:.100}" for part in item["loc"]]
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
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        text = f"a {type(value).__name__} too long to be written"
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
