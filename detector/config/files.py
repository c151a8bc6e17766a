"""Reads the values of a config from files and the command line, with ``_base_`` inheritance.

A config is named by its path, or by the name of one that is shipped: ``quickstart`` is
``configs/quickstart.yaml``, wherever the package is installed (`find_config`).

``_base_`` is a path, or a list of paths, relative to the file that names it, or the name of a shipped config;
later ones win and the file itself wins over all. Mappings are merged key by key, with these exceptions:

- a ``proposals`` mapping that names a ``file`` or a ``method`` replaces the inherited source (another
  ``file`` keeps the ``format``);
- another ``model.pool.kind`` does not inherit the keys of the pool;
- another ``train.sampling.kind`` inherits only the keys that both kinds have;
- another ``model.backbone.name`` does not inherit ``stage`` and ``feature_scale``;
- of ``train.steps`` and ``train.epochs``, the one that is named replaces the other.

An override is ``section.key=value`` with a YAML value, for instance ``train.steps=100`` or
``test.scales=[480,600]``. Values are checked elsewhere, in `detector.config.load`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from detector.config.explain import shown
from detector.config.schema import Config
from detector.core.errors import InputError
from detector.core.files import read_short_text

MAX_BYTES = 1 << 20
"""The largest size of a config together with its bases."""
MAX_FILES = 64
"""The largest number of files of a config: its own and those of its bases."""
SUFFIXES = (".yaml", ".yml")
"""The suffixes that a base may have."""
COMMAND_LINE = "command line"
"""The name of the layer that holds the overrides; the other layers have the names of their files."""

_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = next(
    (folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()),
    _PACKAGE / "configs",
)
"""The folder of the shipped configs: inside the installed package, or beside it in a checkout."""


def find_config(name: str | Path, folder: Path | None = None) -> Path:
    """Return the path of a config: a file, or a shipped config of this ``name``.

    ``folder`` is where a relative path starts; None is the working directory. A path wins over a name.

    Raises:
        InputError: no file and no shipped config has this name (the message lists shipped configs of similar
            names), or the path cannot be accessed.
    """
    path = (folder or Path()) / name
    try:
        if path.is_file():
            return path
    except OSError as error:
        raise InputError(f"{path}: cannot read the config: {error.strerror}") from None
    wanted = Path(name).with_suffix("") if Path(name).suffix in SUFFIXES else Path(name)
    shipped = {
        file.relative_to(SHIPPED).with_suffix("").as_posix(): file
        for file in sorted(SHIPPED.rglob("*.yaml"))
        if file.parent.name != "suites"
    }
    if wanted.as_posix() in shipped:
        return shipped[wanted.as_posix()]
    close = difflib.get_close_matches(wanted.as_posix(), list(shipped), n=5, cutoff=0.5)
    hint = f"; shipped configs of similar names: {', '.join(close)}" if close else ""
    raise InputError(f"{path}: no such config file{hint}")


Layers = list[tuple[str, Mapping[str, Any]]]
"""The values that each file and the command line give, by name, in the order in which they are merged."""


def read_layers(path: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], str, Layers]:
    """Return the merged but unchecked values of a config, its path, and what they were merged from."""
    path = find_config(path)
    layers: Layers = []
    values = _read_with_bases(path, (), layers, [])
    layers.append((COMMAND_LINE, override({}, overrides)))
    return override(values, overrides), str(path), layers


def _read_with_bases(
    path: Path, parents: tuple[Path, ...], layers: Layers, sizes: list[int]
) -> dict[str, Any]:
    """Return the merged values of a file and its bases, and append each file to ``layers``.

    ``parents`` are the files that led here, ``sizes`` the bytes of all files that were read before.
    """
    if path.resolve() in parents:
        raise InputError(f"{path}: _base_ leads back to this file; remove the cycle")
    if parents and path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: _base_ names this file; a base ends with {' or '.join(SUFFIXES)}")
    values = read_yaml(path, quote=not parents)
    unknown = len(set(values) - set(Config.model_fields) - {"_base_"})
    if parents and unknown:  # the names are not shown: it may be any file
        raise InputError(
            f"{path}: _base_ names this file, which has {unknown} sections that no config has; "
            f"a config has {', '.join(Config.model_fields)}"
        )
    sizes.append(path.stat().st_size)
    if len(sizes) > MAX_FILES or sum(sizes) > MAX_BYTES:
        raise InputError(
            f"{path}: _base_ leads to more than {MAX_FILES} files or {MAX_BYTES} bytes in all; name each "
            "base once"
        )
    bases = values.pop("_base_", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) and "\0" not in base for base in bases):
        given = f", not {shown(bases)}" if not parents else ""
        raise InputError(f"{path}: _base_ must be a path or a list of paths{given}")
    merged: dict[str, Any] = {}
    for base in bases:
        below = (*parents, path.resolve())
        merged = merge(merged, _read_with_bases(find_config(base, path.parent), below, layers, sizes))
    layers.append((str(path), values))
    return merge(merged, values)


def read_yaml(path: Path, *, quote: bool = True) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Without ``quote`` an error says where the mistake is and of what kind, but repeats nothing of the file,
    since any file may be named as a config.

    Raises:
        InputError: missing, too large, or not a mapping of names.
    """
    text = read_short_text(path, "the config", MAX_BYTES)
    try:
        values = _parse(text, quote=quote)
    except ValueError as error:
        raise InputError(f"{path}: not readable as YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{path}: a config is a mapping of names to values")
    return values


def _parse(text: str, *, quote: bool = True) -> Any:
    """Parse YAML; every error of the library becomes a ValueError with a reason of one line."""
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
        reason = " ".join(str(error).split())[:200] if quote else "a value that does not have its tag's type"
        raise ValueError(reason) from None


_KINDS = {
    yaml.scanner.ScannerError: "a syntax error",
    yaml.parser.ParserError: "a syntax error",
    yaml.composer.ComposerError: "an alias, or more than one document",
    yaml.constructor.ConstructorError: "an unknown tag, or a duplicate key",
}


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses duplicate keys, and aliases (they can expand without end)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not allowed in a config", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)


# In YAML 1.1, which the library reads, 1e-3 is a string; everybody who writes it means a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


_CHOICES = ("kind", "name", "method", "file")
"""Keys that `_inherited` looks at, such as ``model.head.kind`` or ``proposals.method``."""


def merge(base: dict[str, Any], top: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """Return ``base`` with the values of ``top``, which wins; ``key`` is the key of both mappings, if any."""
    merged = _inherited(base, top, key)
    for name, value in top.items():
        both = isinstance(merged.get(name), dict) and isinstance(value, dict)
        merged[name] = merge(merged[name], value, name) if both else value
    return merged


def _inherited(base: dict[str, Any], top: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return those values of ``base`` that stay valid with the values of ``top``."""
    dropped: set[str] = set()
    match key:
        case "proposals" if {"file", "method"} & set(top):
            # Another source replaces the inherited one with its options; limits such as top-k are kept.
            kept = {"top_k_train", "top_k_test", "min_size", "missing", "faults"}
            if "method" not in top:
                kept |= {"format", "convention"}  # another file of the same kind
            dropped = set(base) - kept
        case "pool" if "kind" in top and top["kind"] != base.get("kind", "roi"):
            dropped = set(base)
        case "head" if "kind" in top and top["kind"] != base.get("kind", "softmax"):
            dropped = set(base)
        case "sampling" if "kind" in top and top["kind"] != base.get("kind", "random"):
            dropped = set(base) - {"rois_per_image", "foreground_iou", "add_targets"}
        case "backbone" if top.get("name", base.get("name")) != base.get("name"):
            dropped = {"stage", "feature_scale"}
        case "train":
            lengths = {"steps", "epochs"}
            named = {name for name in lengths if top.get(name) is not None}
            dropped = lengths - named if named else set()
    return {name: value for name, value in base.items() if name not in dropped}


def _choices_first(overrides: Sequence[str]) -> list[str]:
    """Return ``overrides`` with each choice of a kind or a network before the options of the same section.

    Such a choice drops inherited options of others, but an option that the user writes before the kind
    belongs to that kind. After an earlier choice, or the whole section, options belong to that one instead.
    """
    ordered: list[str] = []
    for written in overrides:
        section, _, last = written.partition("=")[0].rpartition(".")
        place = len(ordered)
        for number in range(len(ordered) - 1, -1, -1) if section and last in _CHOICES else ():
            key = ordered[number].partition("=")[0]
            parent, _, name = key.rpartition(".")
            if key == section or (parent == section and name in _CHOICES):
                place = len(ordered)
                break
            if section.startswith(f"{key}."):
                break
            inside = key.startswith(f"{section}.")
            place = number if inside else place
        ordered.insert(place, written)
    return ordered


def override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``values`` with each ``key=value`` of ``overrides`` applied, ordered by `_choices_first`."""
    for written in _choices_first(overrides):
        name, equals, text = written.partition("=")
        keys = name.split(".")
        if not equals or not all(keys):
            raise InputError(f"override {written!r}: write it as section.key=value")
        try:
            value = _parse(text)
        except ValueError as error:
            raise InputError(f"override {written!r}: the value is not readable as YAML: {error}") from None
        for key in reversed(keys):
            value = {key: value}
        values = merge(values, value)
    return values


def value_at(values: Any, keys: Sequence[str]) -> Iterator[Any]:
    """Yield the value below ``keys`` in nested mappings, or nothing if there is none."""
    for key in keys:
        if not isinstance(values, Mapping) or key not in values:
            return
        values = values[key]
    yield values
