"""Turns CUDA source into C++ for the emulator: launches, ``__shared__`` declarations and a few names.

Nothing else of CUDA's dialect needs a change; ``include/cuda_runtime.h`` declares the rest. Lines keep their
numbers, so that errors and reports name places in the project's own files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_PAIRS = {"(": ")", "[": "]", "{": "}"}
_CLOSERS = {close: opening for opening, close in _PAIRS.items()} | {">": "<"}
_COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)
_SHARED = re.compile(r"(?:\bextern\s+)?(?:\balignas\s*\([^()]*\)\s*)?(?:\bstatic\s+)?\b__shared__\b")
_ALIGNMENT = re.compile(r"\b(?:__align__|alignas)\s*\(([^()]*)\)")
_EXTREMES = re.compile(r"(?:\bstd)?(?:::)?\b(fmaxf|fminf|fmax|fmin)\s*(?=\()")


def translate(source: str, path: str) -> str:
    """Return ``source``, which ``path`` names in messages, as C++."""
    plain = _COMMENT_OR_STRING.sub(_blank_comment, source)
    plain = re.sub(r"\b__noinline__\b", "[[gnu::noinline]]", plain)
    plain = _EXTREMES.sub(r"emulator::\1", plain)
    return f'#line 1 "{path}"\n' + _launches(_shared_variables(plain, path), path)


def _blank_comment(match: re.Match[str]) -> str:
    """Replace a comment by its line breaks; keep strings."""
    text = match[0]
    return text if text[0] in "\"'" else " " + "\n" * text.count("\n")


def _shared_variables(source: str, path: str) -> str:
    parts, done = [], 0
    for match in _SHARED.finditer(source):
        end = source.find(";", match.end())
        if end < 0:
            raise ValueError(f"{path}: a __shared__ declaration without an end")
        text = source[match.start() : end]
        alignments = _ALIGNMENT.findall(text)
        declaration = _ALIGNMENT.sub(" ", source[match.end() : end])
        translate_one = _dynamic if re.match(r"\bextern\b", text) else _static
        parts += [source[done : match.start()], translate_one(declaration, alignments, path)]
        parts.append("\n" * (text.count("\n") - parts[-1].count("\n")))
        done = end
    return "".join([*parts, source[done:]])


def _dynamic(declaration: str, _alignments: list[str], path: str) -> str:
    match = re.fullmatch(r"\s*(.+?)\s*\b(\w+)\s*\[\s*\]\s*", declaration, re.DOTALL)
    if match is None:
        raise ValueError(f"{path}: not understood: extern __shared__{declaration}")
    kind, name = match.groups()
    return f"{kind}* const {name} = static_cast<{kind}*>(emulator::dynamic_shared())"


def _static(declaration: str, alignments: list[str], path: str) -> str:
    first, *others = _split(declaration)
    match = re.fullmatch(r"\s*(.+?)\s*\b(\w+)\s*((?:\[.*\])?)\s*", first, re.DOTALL)
    if match is None:
        raise ValueError(f"{path}: not understood: __shared__{declaration}")
    kind = match[1]
    declarators = [(match[2], match[3])]
    for other in others:
        following = re.fullmatch(r"\s*(\w+)\s*((?:\[.*\])?)\s*", other, re.DOTALL)
        if following is None:
            raise ValueError(f"{path}: not understood: __shared__{declaration}")
        declarators.append((following[1], following[2]))
    results = []
    for name, extents in declarators:
        array = kind + "".join(f"[({extent})]" for extent in _extents(extents))
        if not alignments:
            results.append(f"auto& {name} = emulator::static_shared<{array}>([] {{}})")
        else:  # a wrapper carries the alignment, which is no part of an array's type
            wrapper = f"emulator::Aligned<{array}, {', '.join(f'({one})' for one in alignments)}>"
            results.append(f"auto& {name} = emulator::static_shared<{wrapper}>([] {{}}).value")
    return "; ".join(results)


def _split(text: str) -> list[str]:
    """Split at commas outside brackets; ``<`` counts as a bracket outside round and square brackets."""
    parts: list[str] = []
    stack: list[str] = []
    start = 0
    for at, char in enumerate(text):
        if char in "([{" or (char == "<" and (not stack or stack[-1] == "<")):
            stack.append(char)
        elif char in ")]}" or (char == ">" and stack and stack[-1] == "<"):
            stack.pop()
        elif char == "," and not stack:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _extents(text: str) -> Iterator[str]:
    depth, start = 0, 0
    for at, char in enumerate(text):
        if char == "[":
            depth += 1
            start = at + 1 if depth == 1 else start
        elif char == "]":
            depth -= 1
            if depth == 0:
                yield text[start:at]


def _launches(source: str, path: str) -> str:
    parts, done = [], 0
    for match in re.finditer(r"<<<", source):
        begin = _kernel_before(source, match.start(), path)
        end = source.find(">>>", match.end())
        if begin < done or end < 0:
            raise ValueError(f"{path}: a launch that is not understood: {source[begin : begin + 80]!r}")
        text, configuration = source[begin : match.start()], source[match.end() : end]
        kernel = " ".join(text.split())
        name = kernel.replace("\\", "\\\\").replace('"', '\\"')
        pointer = f"static_cast<void (*)(decltype(emulated)...)>({kernel})"
        parts += [
            source[done:begin],
            f'emulator::prepare("{name}", [=](auto... emulated) {{ ({kernel})(emulated...); }}, '
            f"[=](auto... emulated) -> const void* {{ if constexpr (requires {{ {pointer}; }}) "
            f"return reinterpret_cast<const void*>({pointer}); else return nullptr; }}, {configuration})",
            "\n" * text.count("\n"),
        ]
        done = end + len(">>>")
    return "".join([*parts, source[done:]])


def _kernel_before(source: str, at: int, path: str) -> int:
    """Return where the expression begins that ends at ``at``: a name with its qualifiers, template arguments,
    members and indices, or something in round brackets."""
    while True:
        at = len(source[:at].rstrip())
        last = source[at - 1]
        if last in ")]>":
            at = _opening(source, at - 1, path)
            before = source[:at].rstrip()
            if last == ")" and not (before and (before[-1].isalnum() or before[-1] in "_>")):
                return at
            if last == ")" and re.search(r"\b(?:return|else|do)$", before):
                return at
            continue
        name = re.search(r"[A-Za-z_]\w*$", source[:at])
        if name is None:
            raise ValueError(f"{path}: no kernel before <<< at {source[at - 40 : at + 3]!r}")
        at = name.start()
        qualifier = re.search(r"(::|\.|->)\s*(?:template\s+)?$", source[:at])
        if qualifier is None:
            return at
        at = qualifier.start()
        if not re.search(r"[\w>)\]]\s*$", source[:at]):
            return at  # a leading ::


def _opening(source: str, at: int, path: str) -> int:
    """Return the position of the bracket that opens what closes at ``at``."""
    closing = source[at]
    stack: list[str] = []
    for position in range(at, -1, -1):
        char = source[position]
        if char in ")]}" or (char == ">" and (not stack or stack[-1] == ">") and source[position - 1] != "-"):
            stack.append(char)
        elif char in "([{" or (char == "<" and stack[-1] == ">"):
            if _CLOSERS[stack.pop()] != char:
                break
            if not stack:
                return position
    raise ValueError(f"{path}: no opening bracket for {closing!r} in {source[max(at - 80, 0) : at + 1]!r}")
