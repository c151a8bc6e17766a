"""Reading a config: YAML, ``_base_`` inheritance and ``key=value`` overrides.

A config is named by its path, or by the name of one that is shipped: ``quickstart`` is
``configs/quickstart.yaml``, wherever the package is installed (`find_config`).

``_base_`` is a path, or a list of paths, relative to the file that names it, or the name of a shipped config;
later ones win and the file itself wins over all. Mappings are merged key by key, with these exceptions:

- a ``proposals`` mapping that names a ``file`` or a ``method`` replaces the inherited source (another
  ``file`` keeps the ``format``);
- another ``model.pool.kind`` does not inherit the keys of the pool;
- another ``model.backbone.name`` does not inherit ``stage`` and ``feature_scale``;
- of ``train.steps`` and ``train.epochs``, the one that is named replaces the other.

An override is ``section.key=value`` with a YAML value, for instance ``train.steps=100`` or
``test.scales=[480,600]``.

**A config file is code of whoever wrote it**: ``proposals.method: module:function`` imports the module and
calls the function, and paths in it are read. Read a stranger's config before you use it. A checkpoint is
data: a name that leads to code is followed only where the user's own command line, or the config file named
on it, says so, and never because the config inside a checkpoint does (`parse_stored`).
"""

from __future__ import annotations

import ast
import difflib
import keyword
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from detector.config.explain import explain, shown, unusable_text
from detector.config.schema import (
    Config,
    FunctionProposals,
    Proposals,
    ProposalsConfig,
    Section,
    StageConfig,
)
from detector.core.errors import InputError, nearest

Checked = TypeVar("Checked", bound=Section)

MAX_BYTES = 1 << 20
"""A config is a page of text; anything larger is not one."""
MAX_FILES = 64
"""A config and its bases, together."""
SUFFIXES = (".yaml", ".yml")
"""Of bases."""
MAX_STORED_INPUT = 2**24
"""Pixels of a test image at all scales that the config inside a checkpoint may ask for; SPP-net's five scales
take half of it."""
COMMAND_LINE = "command line"
"""The layer of the overrides, beside those of the files."""

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
        InputError: neither; lists the shipped configs of similar names.
    """
    path = (folder or Path()) / name
    if path.is_file():
        return path
    wanted = Path(name).with_suffix("") if Path(name).suffix in SUFFIXES else Path(name)
    names = {found.relative_to(SHIPPED).with_suffix("").as_posix(): found for found in _shipped_files()}
    if wanted.as_posix() in names:
        return names[wanted.as_posix()]
    close = difflib.get_close_matches(wanted.as_posix(), list(names), n=5, cutoff=0.5)
    said = f"; shipped configs of similar names: {', '.join(close)}" if close else ""
    raise InputError(f"{path}: no such config file{said}")


def _shipped_files() -> list[Path]:
    return [path for path in sorted(SHIPPED.rglob("*.yaml")) if path.parent.name != "suites"]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the config at ``path``, or the shipped one of this name, apply the overrides, check everything.

    Raises:
        InputError: naming the file, the key, the value, what was expected and the nearest valid key.
    """
    values, source, _ = read_layers(path, overrides)
    config = parse_config(values, source)
    check_function(config.proposals, source)
    for stage in config.stages:
        check_function(stage_config(config, stage).proposals, f"{source}: stages: {stage.name}")
    return config


Layers = list[tuple[str, Mapping[str, Any]]]
"""The values that each file and the command line give, by name, in the order in which they are merged."""


def read_layers(path: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], str, Layers]:
    """Return the merged but unchecked values of a config, its path, and what they were merged from."""
    found, reader = find_config(path), _Reader()
    values = reader.read(found, seen=())
    layers = [*reader.layers, (COMMAND_LINE, override({}, overrides))]
    return override(values, overrides), str(found), layers


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


def parse_stored(values: Mapping[str, Any], overrides: Sequence[str], source: str) -> Config:
    """Check the config that the checkpoint ``source`` holds, with the user's ``overrides`` applied.

    The functions that it names are not called: a checkpoint is data. Its number of loader processes is not
    taken over, since it says nothing about this machine.

    Raises:
        InputError: as `parse_config`, and, unless ``overrides`` give them, for a name that leads to code and
            for test images of over `MAX_STORED_INPUT` pixels at all scales.
    """
    try:
        config = parse_config(override(dict(values), ["data.workers=null", *overrides]), source)
    except InputError as error:
        raise InputError(
            f"{error}\n{source}: this is the config in the checkpoint, with the command line's values; give "
            "what is named another value on the command line, for instance stages=[] (tools/demo.py: "
            "--set stages=[])"
        ) from None
    own = override({}, overrides)
    if "test" not in own and config.test.input_pixels > MAX_STORED_INPUT:
        raise InputError(
            f"{source}: the config in this checkpoint tests on images of {config.test.input_pixels} pixels, "
            f"which takes many gigabytes; give smaller test.scales, or these, on the command line"
        )
    named = own["proposals"].get("method") if isinstance(own.get("proposals"), dict) else None
    used = {"proposals.method": config.proposals}
    if "stages" not in own:
        used |= {f"stages: {stage.name}": stage_config(config, stage).proposals for stage in config.stages}
    for key, proposals in used.items():
        if proposals.calls_function and proposals.method != named:
            raise InputError(_refusal(source, key, str(proposals.method)))
    return config


def _refusal(source: str, key: str, method: str) -> str:
    allowed = "stages=[]" if key.startswith("stages") else "proposals.method=..."
    return (
        f"{source}: the config in this checkpoint has {key} = {method!r:.80}, a name that leads to code, and "
        "a checkpoint may not choose code that runs here. If you know and trust it, say so on the command "
        f"line with {allowed} (tools/demo.py: --set {allowed}); a method such as selective_search needs no "
        "trust"
    )


class _OnlyProposals(Section):
    proposals: Proposals


def parse_proposals(values: Mapping[str, Any], source: str) -> ProposalsConfig:
    """Check a mapping that has only ``proposals``, for tools that need no whole config."""
    proposals: ProposalsConfig = _checked(_OnlyProposals, values, source).proposals
    check_function(proposals, source)
    return proposals


def _checked(section: type[Checked], values: Mapping[str, Any], source: str) -> Checked:
    for message in unusable_text(values, source):
        raise InputError(message)
    try:
        return section.model_validate(_with_tuples(values))
    except ValidationError as error:
        raise InputError(explain(error, section, source)) from None


def check_function(proposals: ProposalsConfig, source: str) -> None:
    """Check a ``module:function`` and its options as far as its source shows, without importing it.

    A module that is not found as a file on Python's path or in the working directory is not judged.

    Raises:
        InputError: the module defines no such function, or the function does not take the options.
    """
    if not isinstance(proposals, FunctionProposals):
        return
    for option in proposals.options:
        if not option.isidentifier() or keyword.iskeyword(option):
            raise InputError(
                f"{source}: proposals.options: {shown(option)} cannot be the name of a keyword argument"
            )
    module, _, name = proposals.method.partition(":")
    path = _module_file(module)
    if path is None:
        return
    try:
        text = path.read_text(encoding="utf-8")
        body = ast.parse(text).body
    except (OSError, ValueError, SyntaxError):
        return  # loading it will say what is wrong
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    if name not in functions:
        if not re.search(rf"\b{name}\b|import \*", text):
            raise InputError(
                f"{source}: proposals.method: {path} defines no {name!r}{nearest(name, functions)}"
            )
        return
    parameters = functions[name].args
    valid = [one.arg for one in [*parameters.args[1:], *parameters.kwonlyargs]]
    for option in proposals.options:
        if option not in valid and parameters.kwarg is None and not functions[name].decorator_list:
            raise InputError(
                f"{source}: proposals.options: {proposals.method} takes no {option!r}"
                f"{nearest(option, valid)}; it takes {', '.join(valid) or 'no options'}"
            )


def _module_file(module: str) -> Path | None:
    """Return the Python file of a module, found without importing its packages."""
    places: Sequence[str] | None = [*sys.path, str(Path.cwd())]
    origin = None
    names = module.split(".")
    for depth in range(len(names)):
        found = PathFinder.find_spec(".".join(names[: depth + 1]), places) if places else None
        if found is None:
            return None
        places, origin = found.submodule_search_locations, found.origin
    return Path(origin) if origin is not None and origin.endswith(".py") else None


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
        self.layers: Layers = []

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
            given = f", not {shown(bases)}" if not seen else ""
            raise InputError(f"{path}: _base_ must be a path or a list of paths{given}")
        merged: dict[str, Any] = {}
        for base in bases:
            merged = _merge(merged, self.read(find_config(base, path.parent), (*seen, path.resolve())))
        self.layers.append((str(path), values))
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
    """YAML knows only lists; the frozen schema holds tuples."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_with_tuples(item) for item in value)
    return value
