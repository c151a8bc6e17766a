"""Checking a config: the user's own, one stage of it, or the one inside a checkpoint.

**A config file can run code**: ``proposals.method: module:function`` imports the module and calls the
function. It can also name any file to be read. Read a stranger's config before you use it. A checkpoint is
only data: a function is called if the command line, or a config file given there, names it, and never because
the config inside a checkpoint does (`parse_stored`).
"""

from __future__ import annotations

import ast
import keyword
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from detector.config.explain import explain, shown
from detector.config.files import merge, override, read_layers, value_at
from detector.config.schema import (
    Config,
    FunctionHeadConfig,
    FunctionPoolConfig,
    FunctionProposals,
    Proposals,
    ProposalsConfig,
    Section,
    StageConfig,
    is_own,
    pools_by_masks,
)
from detector.core.errors import InputError, nearest

Checked = TypeVar("Checked", bound=Section)

MAX_STORED_INPUT = 2**24
"""The most input pixels per test image, all scales together, that the config inside a checkpoint may ask for;
SPP-net's five scales need half of them."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the config at ``path``, or the shipped one of this name, apply the overrides and check the result.

    Raises:
        InputError: naming the file, the key, the value, what was expected and the nearest valid key.
    """
    values, source, _ = read_layers(path, overrides)
    config = parse_config(values, source)
    check_function(config.proposals, source)
    for stage in config.stages:
        check_function(stage_config(config, stage).proposals, f"{source}: stages: {stage.name}")
    return config


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """Check a config given as a mapping; errors name ``source``. For a checkpoint's, see `parse_stored`."""
    config = _checked(Config, values, source)
    for stage in config.stages:
        stage_config(config, stage, source)
    return config


def parse_stored(
    values: Mapping[str, Any], overrides: Sequence[str], source: str, *, allow_code: Collection[str] = ()
) -> Config:
    """Check the config that the checkpoint ``source`` holds, with the user's ``overrides`` applied.

    It may name only functions that ``allow_code`` lists: a checkpoint is data. Its number of loader threads
    is ignored, since it says nothing about this machine.

    Raises:
        InputError: as `parse_config`; also, unless ``overrides`` set these values, for a function that is not
            allowed, and for test images of over `MAX_STORED_INPUT` pixels at all scales.
    """
    try:
        config = parse_config(override(dict(values), ["data.workers=null", *overrides]), source)
    except InputError as error:
        raise InputError(
            f"{error}\n{source}: this is the config in the checkpoint, with the values that you gave; give "
            "the named keys other values, for instance stages=[] (tools/demo.py: --set stages=[]; "
            "Detector.load: overrides=...)"
        ) from None
    own = override({}, overrides)
    if "test" not in own and config.test.input_pixels > MAX_STORED_INPUT:
        raise InputError(
            f"{source}: the config in this checkpoint tests on images of {config.test.input_pixels} pixels, "
            f"which takes many gigabytes; give smaller test.scales, or these, on the command line"
        )
    refuse_code(config, overrides, source, allow_code=allow_code)
    return config


def refuse_code(
    config: Config, overrides: Sequence[str], source: str, *, allow_code: Collection[str] = ()
) -> None:
    """Raise InputError if ``config``, which somebody else may have written, names a function of the user.

    Allowed are those of ``allow_code``, and those that the user's ``overrides`` name. ``source`` is the file
    that holds the config.
    """
    own, configs = override({}, overrides), {"": config}
    if "stages" not in own:
        configs |= {f"stages: {stage.name}": stage_config(config, stage) for stage in config.stages}
    for place, each in configs.items():
        for key, function in _functions(each):
            if function in (*allow_code, *value_at(own, key.split("."))):
                continue
            allowed = "stages=[]" if place else f"{key}=..."
            raise InputError(
                f"{source}: the config in it has {place or key} = {function!r:.80}, the name of a function, "
                "and a checkpoint or a run may not choose code that runs here. If you know and trust it, "
                f"say so on the command line with {allowed} (tools/demo.py: --set {allowed}), or in Python "
                f"with Detector.load(..., allow_code=[{function!r:.80}]); methods such as selective_search "
                "are always allowed"
            )


def _functions(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the functions of the user that a config names, each with its key."""
    if is_own(config.data.format):
        yield "data.format", config.data.format
    if isinstance(config.proposals, FunctionProposals):
        yield "proposals.method", config.proposals.method
    if is_own(config.proposals.format):
        yield "proposals.format", str(config.proposals.format)
    if config.model.backbone.function is not None:
        yield "model.backbone.name", config.model.backbone.function
    if isinstance(config.model.pool, FunctionPoolConfig):
        yield "model.pool.kind", config.model.pool.kind
    if isinstance(config.model.head, FunctionHeadConfig):
        yield "model.head.kind", config.model.head.kind


class _OnlyProposals(Section):
    proposals: Proposals


def parse_proposals(values: Mapping[str, Any], source: str) -> ProposalsConfig:
    """Check a mapping that has only ``proposals``, for tools that need no whole config."""
    proposals: ProposalsConfig = _checked(_OnlyProposals, values, source).proposals
    check_function(proposals, source)
    return proposals


def _checked(section: type[Checked], values: Mapping[str, Any], source: str) -> Checked:
    try:
        return section.model_validate(_plain(values, source))
    except ValidationError as error:
        raise InputError(explain(error, section, source)) from None


def check_function(proposals: ProposalsConfig, source: str) -> None:
    """Check a ``module:function`` and its options against the function's source code, without importing it.

    A module without a file on Python's path or in the working directory is not checked.

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
    after_image = parameters.args if parameters.posonlyargs else parameters.args[1:]
    valid = [parameter.arg for parameter in [*after_image, *parameters.kwonlyargs]]
    for option in proposals.options:
        if option not in valid and parameters.kwarg is None and not functions[name].decorator_list:
            raise InputError(
                f"{source}: proposals.options: {proposals.method} takes no {option!r}"
                f"{nearest(option, valid)}; it takes {', '.join(valid) or 'no options'}"
            )


def _module_file(module: str) -> Path | None:
    """Return the Python file of a module, or None if there is none; its packages are not imported."""
    places: Sequence[str] | None = [*sys.path, str(Path.cwd())]
    origin = None
    names = module.split(".")
    for depth in range(len(names)):
        spec = PathFinder.find_spec(".".join(names[: depth + 1]), places) if places else None
        if spec is None:
            return None
        places, origin = spec.submodule_search_locations, spec.origin
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def stage_config(config: Config, stage: StageConfig, source: str = "the config") -> Config:
    """Return the config that one stage of a staged training runs with: its settings over the rest.

    Raises:
        InputError: settings that no config or no stage of this kind may have; ``source`` is named.
    """
    source = f"{source}: stages: {stage.name}"
    if "stages" in stage.settings:
        raise InputError(f"{source}: a stage has no stages of its own; remove them")
    whole = config.model_dump(mode="json", exclude={"stages"})
    wanted = merge(whole, stage.settings)
    if stage.kind == "head":
        wanted = merge(wanted, {"train": {"head_only": True}})
    chosen = parse_config(wanted, source)
    if stage.kind != "train" and chosen.train.augment.active:
        raise InputError(
            f"{source}: a stage of kind {stage.kind} works on cached features, which "
            "train.augment cannot change; set it in the settings of the stages of kind train instead"
        )
    if stage.kind in ("fine_tune", "svm", "box_ridge") and pools_by_masks(chosen.model.pool):
        raise InputError(
            f"{source}: a stage of kind {stage.kind} pools stored feature maps by boxes; set model.pool.mask "
            "to none, or use stages of kind train and head"
        )
    return chosen


def require_stage(config: Config, name: str) -> None:
    """Raise InputError if ``--stage`` names a stage that the config does not have."""
    names = [stage.name for stage in config.all_stages]
    if not names:
        raise InputError(f"--stage {name}: the config has no stages; leave --stage out")
    if name not in names:
        raise InputError(f"--stage {name}: the config's stages are {', '.join(names)}")


def _plain(value: Any, source: str, key: str = "") -> Any:
    """Return ``value`` with its lists as tuples, which the frozen schema holds.

    Raises InputError for text that cannot be part of a path, a name or a line of output.
    """
    if isinstance(value, Mapping):
        return {
            _plain(name, source, key): _plain(item, source, f"{key}.{name}" if key else str(name))
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return tuple(_plain(item, source, key) for item in value)
    if isinstance(value, str):
        try:  # bytes of the command line that are not UTF-8 are allowed
            usable = b"\0" not in value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            usable = False
        if not usable:
            raise InputError(
                f"{source}: {key or 'a key'} = {shown(value)}: holds a null character or half a surrogate "
                "pair, which no path or name can have; remove it"
            )
    return value
