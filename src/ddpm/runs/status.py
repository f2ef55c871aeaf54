"""What a run writes about itself: status.json, metrics.json, provenance.json."""

import json
import math
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

from ddpm.runs.files import read_json, replace_file

State = Literal["running", "finished", "failed", "interrupted", "pruned"]
INTERRUPTED = 75
"""the exit code of a run that was asked to stop, and goes on by the same command: EX_TEMPFAIL"""

PACKAGES = ("ddpm-lightning", "torch", "torchvision", "lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy")


def now() -> str:
    """The local time with its offset, to the second (ISO 8601)."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace `path` in one step: whenever it is read, it is the old file or the new one, whole.

    Tensors and arrays become numbers and lists, paths strings; NaN and infinity, which JSON lacks, null.
    """
    text = json.dumps(_plain(data), indent=2, ensure_ascii=False) + "\n"
    replace_file(path, text.encode())


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

    state: State = "running"
    step: int = 0
    """optimizer steps"""
    epoch: int = 0
    """epochs of the data that are complete"""
    seconds: float = 0.0
    """of training, over all processes that went on with the run"""
    started: str = field(default_factory=now)
    updated: str = field(default_factory=now)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    error: str | None = None
    checkpoints: dict[str, list[str]] = field(default_factory=dict)
    """SHA-256 of each checkpoint file: of the one written last, and of the one before, until that is replaced"""

    @classmethod
    def read(cls, run: Path) -> Self | None:
        """The status of the run in this directory, None where there is none that can be read."""
        known = {field.name for field in fields(cls)}
        saved = {name: value for name, value in read_json(run / "status.json").items() if name in known}
        if not saved:
            return None
        status = cls(**saved)
        digests: Any = status.checkpoints  # a file may say anything
        digests = digests.items() if isinstance(digests, dict) else []
        status.checkpoints = {name: known for name, known in digests if isinstance(known, list)}
        return status

    def write(self, run: Path) -> None:
        """Write status.json into the run's directory, with the time of now in `updated`."""
        self.updated = now()
        write_json(run / "status.json", asdict(self))


def write_provenance(folder: Path, device: str, **more: Any) -> None:
    """Write provenance.json; what an earlier process wrote there is kept in it, as `earlier`, newest first."""
    path = folder / "provenance.json"
    before = read_json(path)
    earlier = [before, *before.pop("earlier", [])] if before else []
    write_json(path, provenance(device) | more | ({"earlier": earlier} if earlier else {}))


def provenance(device: str) -> dict[str, Any]:
    """Where a result comes from: code, versions, device, command line, host and time."""
    return {
        "git": git_state(Path(__file__).resolve().parents[1]),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "device": device,
        "command_line": shlex.join(sys.orig_argv),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "time": now(),
    }


def git_state(package: Path) -> dict[str, Any] | None:
    """Commit, diff and untracked files of the clone that these files are in; None if git does not track them.

    So a package installed in an environment inside another project's clone is not taken for that project.
    """
    if not _git(package, "ls-files", "."):
        return None
    root = Path(_git(package, "rev-parse", "--show-toplevel") or package)
    return {
        "commit": _git(root, "rev-parse", "--verify", "HEAD"),
        "diff": _git(root, "diff", "HEAD"),
        "untracked": (_git(root, "ls-files", "--others", "--exclude-standard") or "").splitlines(),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, no clone, or no commit yet
        return None
    return done.stdout.decode(errors="replace").rstrip("\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
