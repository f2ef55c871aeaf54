"""The JSON files that a run writes about itself: status.json, metrics.json, provenance.json."""

import json
import math
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from ddpm.runs.files import read_json, replace_file
from ddpm.secrets import mask_override, mask_values

State = Literal["running", "finished", "failed", "interrupted", "pruned", "stopped"]
MAX_ERROR = 4000
"""maximum number of characters of an error in status.json; log.txt has the whole error"""
INTERRUPTED = 75
"""exit code of an interrupted run, which the same command continues (EX_TEMPFAIL)"""

PACKAGES = ("ddpm-lightning", "torch", "torchvision", "lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy")


def now() -> str:
    """Return the local time with its UTC offset, to the second (ISO 8601)."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` to a JSON file atomically: a reader finds either the complete old file or the complete new file.

    Tensors and arrays become numbers and lists, and paths become strings. NaN and infinity become null, because JSON
    has no such numbers. Secrets are masked.
    """
    text = json.dumps(mask_values(_plain(data)), indent=2, ensure_ascii=False) + "\n"
    replace_file(path, text.encode(errors="backslashreplace"))  # a file name in `data` may be invalid Unicode


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # tensors and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass
class Status:
    """The contents of status.json."""

    __pydantic_config__: ClassVar = {"strict": True, "allow_inf_nan": False, "extra": "ignore"}

    state: State = "running"
    step: int = 0
    """optimizer steps done"""
    epoch: int = 0
    """complete epochs of the data"""
    seconds: float = 0.0
    """training time, including the time before each resume"""
    started: str = field(default_factory=now)
    updated: str = field(default_factory=now)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    error: str | None = None

    @classmethod
    def read(cls, run: Path) -> Self | None:
        """Return the status of the run in the directory `run`, None if status.json is absent or unreadable."""
        from pydantic import TypeAdapter, ValidationError  # imported late: help and completion do not need it

        saved = read_json(run / "status.json")
        try:
            return TypeAdapter(cls).validate_json(json.dumps(saved)) if saved else None
        except ValidationError:
            return None

    def write(self, run: Path) -> None:
        """Set `updated` to the current time, shorten a long error, and write status.json to the directory `run`."""
        self.updated = now()
        if self.error is not None and len(self.error) > MAX_ERROR:
            left_out = len(self.error) - MAX_ERROR
            start, end = self.error[: MAX_ERROR // 2], self.error[-MAX_ERROR // 2 :]
            self.error = f"{start}\n… {left_out} characters left out; log.txt has them …\n{end}"
        write_json(run / "status.json", asdict(self))


def write_provenance(folder: Path, device: str, **more: Any) -> None:
    """Write provenance.json. The file keeps the records of earlier processes under `earlier`, newest first."""
    path = folder / "provenance.json"
    before = read_json(path)
    older = before.pop("earlier", [])
    earlier = [before, *(older if isinstance(older, list) else [])] if before else []
    write_json(path, provenance(device) | more | ({"earlier": earlier} if earlier else {}))


def provenance(device: str) -> dict[str, Any]:
    """Return the provenance of a result: code, versions, device, command line, host and time."""
    return {
        "git": git_state(Path(__file__).resolve().parents[1]),
        "versions": {"python": platform.python_version()} | {name: installed_version(name) for name in PACKAGES},
        "device": device,
        "command_line": shlex.join(map(mask_override, sys.orig_argv)),
        "host": socket.gethostname(),
        "processor": processor(),
        "platform": platform.platform(),
        "time": now(),
    }


def processor() -> dict[str, Any]:
    """Return the processor's name, its cores for this process, and its vector instructions as far as Linux lists them.

    The speed and the rounding of a training depend on them.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    features = [word for word in info.get("flags", "").split() if word.startswith(("avx", "amx"))]
    return {"name": info.get("model name", platform.processor()), "cores": cores, "features": features}


def git_state(package: Path) -> dict[str, Any] | None:
    """Return commit, diff and untracked files of the clone that tracks `package`, None if no clone tracks it.

    For example, git does not track a package that is installed in a virtual environment inside another clone.
    """
    if not _git(package, "ls-files", "."):
        return None
    root = Path(_git(package, "rev-parse", "--show-toplevel") or package)
    return {
        "commit": _git(root, "rev-parse", "--verify", "HEAD"),
        "diff": _git(root, "diff", "HEAD"),
        "untracked": (_git(root, "ls-files", "--others", "--exclude-standard", "--directory") or "").splitlines(),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, no clone, or no commit yet
        return None
    return done.stdout.decode(errors="replace").rstrip("\n")


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
