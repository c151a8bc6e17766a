"""What mkdocs does besides its plugins: pages of files outside docs/, and of the program itself.

- `SHOWN` are Markdown files of the repository that the site shows as pages, without a copy in docs/.
- Links in all pages work in the repository. On the site, those to files outside docs/ lead to the pages of
  `SHOWN`, or to a page with the file's text below ``source/``.
- ``<!-- commands -->`` in a page becomes the table of all commands, ``<!-- options -->`` their help texts.
- The notebook becomes a page with its stored outputs.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import posixpath
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "results.md",
    "data/README.md": "data.md",
    "README.md": "index.md",
}
"""Files of the repository, and the pages that show them. The page for README.md is docs/index.md."""
NOTEBOOK = "quick_look.ipynb"
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
LANGUAGES = {".py": "python", ".h": "cpp", ".cpp": "cpp", ".cu": "cuda", ".yaml": "yaml", ".json": "json"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from other files."""
    for source, page in SHOWN.items():
        if source != "README.md":
            text = (ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=text))
    notebook = ROOT / "docs" / NOTEBOOK
    if notebook.is_file():
        text, pictures = rendered(json.loads(notebook.read_text(encoding="utf-8")))
        files.append(File.generated(config, notebook.with_suffix(".md").name, content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, name, content=content))
    pages = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for place in sorted({place for page, text in pages.items() for place in sources(page, text)}):
        files.append(File.generated(config, f"source/{place}.md", content=listing(ROOT / place)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files of the repository into links to pages, and fill in what the program says."""
    if "<!-- commands -->" in markdown or "<!-- options -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", command_table())
        markdown = markdown.replace("<!-- options -->", command_options())
    uri = page.file.src_uri

    def replaced(match: re.Match[str]) -> str:
        return relative(uri, target_of(uri, match[1])) + (match[2] or "")

    return markdown if uri.startswith("source/") else LINK.sub(replaced, markdown)


def origin(page: str) -> str:
    """Return the file of the repository that a page shows, as ``docs/masks.md``."""
    shown = {made: source for source, made in SHOWN.items() if source != "README.md"}
    return shown.get(page, f"docs/{page}")


def target_of(page: str, target: str) -> str:
    """Return the page or file, relative to docs/, that a link of ``page`` leads to on the site."""
    place = posixpath.normpath(posixpath.join(posixpath.dirname(origin(page)), target))
    if place in SHOWN:
        return SHOWN[place]
    if place.startswith("docs/"):
        return place.removeprefix("docs/").replace(".ipynb", ".md")
    return f"source/{place}.md"


def relative(page: str, target: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def sources(page: str, text: str) -> Iterator[str]:
    """Yield the files and folders outside docs/ that a page links to, if they exist."""
    for match in LINK.finditer(text):
        target = target_of(page, match[1])
        place = target.removeprefix("source/").removesuffix(".md")
        if target.startswith("source/") and (ROOT / place).exists():
            yield place


def listing(path: Path) -> str:
    """Return a page with the text of a file, or the names of the files of a folder."""
    title = f"---\nsearch: {{exclude: true}}\n---\n\n# {path.relative_to(ROOT).as_posix()}\n\n"
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir() if child.name[0] not in "._")
        return title + "".join(f"- `{name}`\n" for name in names)
    text = path.read_text(encoding="utf-8")
    return f"{title}````{LANGUAGES.get(path.suffix, 'text')}\n{text}````\n"


def command_table() -> str:
    """Return a table of all commands: their names, their scripts and what they do."""
    from detector.core.command_line import COMMANDS

    rows = ["| `region-detector ...` | `tools/` | what it does |", "|---|---|---|"]
    rows += [f"| [`{one.name}`](#{one.name}) | `{one.script}.py` | {one.summary} |" for one in COMMANDS]
    return "\n".join(rows)


def command_options() -> str:
    """Return a section per command with the help that ``-h`` prints."""
    from detector.core.command_line import COMMANDS

    return "\n\n".join(f"## {one.name}\n\n```text\n{help_of(one.name)}```" for one in COMMANDS)


def help_of(command: str) -> str:
    """Return what ``region-detector COMMAND -h`` prints, 100 columns wide."""
    module = import_module(f"detector.commands.{command}")
    said = io.StringIO()
    argv = [f"region-detector {command}", "-h"]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict("os.environ", {"COLUMNS": "100", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
    ):
        module.main()
    return said.getvalue()


def rendered(notebook: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown with its outputs, and the pictures among these by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for number, cell in enumerate(notebook["cells"]):
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/jpeg" in data:
                name = f"quick_look_{number}.jpg"
                pictures[name] = base64.b64decode("".join(data["image/jpeg"]))
                parts.append(f"![What the code above draws]({name})")
            elif "text" in output or "text/plain" in data:
                said = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{said.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures
