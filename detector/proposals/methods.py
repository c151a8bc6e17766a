"""The methods that make proposals: their parameters, the names of their stores, and one call per image."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError, nearest
from detector.core.structures import Proposals
from detector.core.user_code import load_object
from detector.proposals.dense import dense_proposals
from detector.proposals.readers.raw_images import make_proposals

if TYPE_CHECKING:
    from detector.ops.selective_search_config import SelectiveSearchConfig

ImageReader = Callable[[Path, tuple[int, int] | None], NDArray[np.uint8]]


def full_parameters(method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``parameters`` with the method's defaults filled in, as they are in the store's manifest.

    ``"dense"`` has the arguments of `dense_proposals`; ``"selective_search"`` has ``mode``, ``seed`` and
    ``max_proposals`` and every field of ``SelectiveSearchConfig``, by default the mode's;
    ``"module:function"`` has only the given ones. Raises InputError for an unknown method, a parameter that
    the method does not have, or a value that it cannot use.
    """
    match method:
        case "dense":
            defaults = _with_lists(dense_proposals.__kwdefaults__ or {})  # mypy: a function may have none
            return _with_defaults(method, defaults, parameters)
        case "selective_search":
            return _search_parameters(parameters)
        case _ if ":" in method:
            return dict(parameters)
        case _:
            raise InputError(
                f"proposal method {method!r} is unknown{nearest(method, ('dense', 'selective_search'))}; use "
                "dense, selective_search, or module:function for a function of yours"
            )


def store_name(method: str, parameters: Mapping[str, Any] | None = None) -> str:
    """Return a readable folder name for a method with these parameters; it differs for other parameters."""
    return folder_name(method, [method, full_parameters(method, parameters or {})])


def folder_name(origin: str, facts: object) -> str:
    """Return a readable folder name for ``origin``, with a digest of ``facts``, which JSON can hold."""
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=4).hexdigest()
    return f"{''.join(letter if letter.isalnum() else '_' for letter in origin)}_{digest}"


def prepare(method: str) -> None:
    """Load the code of the method, which may take longer than an image; InputError if that fails."""
    if method == "selective_search":
        importlib.import_module("detector.ops")
    elif ":" in method:
        load_function(method)


def propose(
    method: str, parameters: Mapping[str, Any], path: Path, size: tuple[int, int], read_image: ImageReader
) -> Proposals:
    """Return the method's proposals for the image at ``path`` of ``size`` (height, width), unfiltered.

    ``parameters`` are those of `full_parameters`; ``read_image`` decodes a file of the given size. Raises
    InputError for an image that cannot be read and for a function that fails or returns no boxes.
    """
    match method:
        case "dense":
            return dense_proposals(size, **parameters)
        case "selective_search":
            from detector.ops import selective_search  # only this method needs the compiled library

            image, config = read_image(path, size), _search_config(parameters)
            try:
                ranked = selective_search(image, config, parameters["seed"], parameters["max_proposals"])
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
            return Proposals(boxes=ranked.boxes, scores=ranked.scores)
        case _:
            function = load_function(method)
            return _call(function, method, read_image(path, size), parameters, path)


def load_function(name: str) -> Callable[..., Any]:
    """Return the function ``module:function``, as `load_object` does."""
    function: Callable[..., Any] = load_object(name, "proposal method")
    return function


def _with_defaults(method: str, defaults: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in defaults:
            raise InputError(
                f"proposal method {method!r} has no parameter {name!r}{nearest(name, defaults)}; "
                f"it has {', '.join(defaults)}"
            )
    return defaults | dict(given)


def _search_parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of selective search, checked by its own configuration."""
    from detector.ops.selective_search_config import as_config

    mode = given.get("mode", "fast")
    of_call = {"mode": mode, "seed": 0, "max_proposals": None}
    parameters = _with_defaults("selective_search", of_call | asdict(as_config(mode)), given)
    _search_config(parameters)  # refuses impossible values
    parameters["scales"] = [float(scale) for scale in parameters["scales"]]  # 50 and 50.0 are one store
    return _with_lists(parameters)


def _with_lists(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``parameters`` with lists in place of tuples, as they are read back from JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()}


def _search_config(parameters: Mapping[str, Any]) -> SelectiveSearchConfig:
    from detector.ops.selective_search_config import SelectiveSearchConfig

    others = ("mode", "seed", "max_proposals")
    return SelectiveSearchConfig(**{name: parameters[name] for name in parameters if name not in others})


def _call(
    function: Callable[..., Any],
    name: str,
    image: NDArray[np.uint8],
    parameters: Mapping[str, Any],
    path: Path,
) -> Proposals:
    try:
        answer = function(image, **parameters)
    except Exception as error:
        raise InputError(f"{name} failed on {path}: {type(error).__name__}: {error}") from error
    boxes, scores = answer if isinstance(answer, tuple) else (answer, None)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) if np.size(boxes) == 0 else np.asarray(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or (scores is not None and np.shape(scores) != (len(boxes),)):
        raise InputError(f"{name} returned boxes of shape {boxes.shape} for {path}; expected (P, 4)")
    return make_proposals(boxes, None if scores is None else np.asarray(scores), f"{name} on {path}")
