"""The facts of the machine and the modules that it lacks. Needs only Python itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / ".whl"
SITE = ROOT / "build" / "site"
CUDA = Path("/usr/local/cuda/bin")
NEEDED = (
    *("torch", "torchvision", "numpy", "cv2", "yaml", "pydantic", "pydantic_core", "annotated_types"),
    *(
        "typing_inspection",
        "rich",
        "tensorboard",
        "matplotlib",
        "PIL",
        "scipy",
        "sklearn",
        "pycocotools",
        "msgspec",
    ),
    *("setuptools", "pytest", "pytest_timeout", "xdist", "hypothesis"),
)
"""Modules that the parts import."""

_PROBE = """
import importlib.util, json, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
facts = {"missing": missing, "python": sys.version.split()[0]}
try:
    import torch
    facts |= {"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": None}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["capability"] = "{}.{}".format(*torch.cuda.get_device_capability())
        facts["gpu memory, MiB"] = torch.cuda.get_device_properties(0).total_memory >> 20
    import torchvision
    facts["torchvision"] = torchvision.__version__
except Exception as error:
    facts["error"] = f"{type(error).__name__}: {error}"
print("PROBE" + json.dumps(facts))
"""


@dataclass
class Machine:
    """The facts of the machine, and the environment in which every part runs."""

    environment: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)

    def tool(self, name: str) -> str | None:
        """Return the path of one of CUDA's tools."""
        return shutil.which(name, path=self.environment["PATH"])

    def look(self, wheels: Path | None = None) -> None:
        """Fill ``facts``; first install missing modules from ``wheels``, if any, into build/site."""
        self.facts |= probe(self.environment)
        folder = wheels or WHEELS
        if self.facts["missing"] and folder.is_dir():
            self.facts["installed from wheels"] = install(sorted(folder.glob("*.whl")))
            self.facts |= probe(self.environment)
        self.facts |= {"cores": os.cpu_count(), "memory, GiB": memory()}
        self.facts |= {name: self.tool(name) for name in ("nvcc", "ncu", "compute-sanitizer")}


def base_environment() -> dict[str, str]:
    """Return the environment of the parts, which import the project and build/site before anything else."""
    environment = dict(os.environ)
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(ROOT), str(SITE), *(path for path in given if path)]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PATH"] = os.pathsep.join([environment.get("PATH", os.defpath), str(CUDA)])
    return environment


def probe(environment: dict[str, str]) -> dict[str, Any]:
    """Ask a Python in the parts' environment which modules it can import and which GPU it sees."""
    command = [sys.executable, "-c", _PROBE, *NEEDED]
    try:
        run = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
        )
        line = next(line for line in run.stdout.splitlines() if line.startswith("PROBE"))
        facts: dict[str, Any] = json.loads(line.removeprefix("PROBE"))
    except subprocess.TimeoutExpired:
        return {"missing": [], "gpu": None, "error": "importing torch took over 90 seconds"}
    except (StopIteration, ValueError):
        return {"missing": [], "gpu": None, "error": run.stderr[-500:]}
    return facts


def install(wheels: list[Path]) -> str:
    """Install wheels into build/site without asking any registry; return pip's last lines.

    If one of them does not fit this machine, the others are installed nevertheless.
    """
    fits, said = pip(wheels)
    if fits:
        return said
    return "; ".join(pip([wheel])[1] for wheel in wheels)


def pip(wheels: list[Path]) -> tuple[bool, str]:
    """Install wheels into build/site; return whether pip succeeded and its last line."""
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(SITE)]
    run = subprocess.run(
        [*command, "--upgrade", *map(str, wheels)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = [line for line in run.stdout.splitlines() if line.strip() and not line.startswith("[notice]")]
    return run.returncode == 0, lines[-1] if lines else f"pip ended with {run.returncode}"


def memory() -> int:
    """Return the machine's memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
