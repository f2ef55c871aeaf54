"""A run's directory in the hands of the one process that trains in it."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from ddpm.errors import UserError
from ddpm.runs.checkpoints import check_archive
from ddpm.runs.files import make_folder, read_json, replacing
from ddpm.runs.status import State, Status, write_json

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


@dataclass
class Run:
    """The directory and its status: open it to train there."""

    directory: Path
    status: Status
    placed: dict[str, str] = field(default_factory=dict)
    """the digest of each checkpoint that this process has put in its place"""
    damaged: set[str] = field(default_factory=set)
    """the checkpoints that were found so, and not replaced since"""
    lock: os.stat_result | None = None
    """the lock's file, as it was when this process took it"""

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The run as it stands."""
        return cls(directory, Status.read(directory) or Status())

    @classmethod
    @contextmanager
    def open(cls, directory: Path) -> Iterator[Self]:
        """Make the directory if need be, and hold its lock, which ends with the process however that ends.

        Raises:
            UserError: another process holds it, or nothing can be written there.
        """
        make_folder(directory)
        lock = FileLock(directory / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            status = Status.read(directory)
            who = f"process {status.pid} on {status.host}" if status else "another process"
            raise UserError(f"{who} is training in {directory}: wait for it, or stop it.") from None
        except OSError as error:
            raise UserError(f"cannot write in {directory}: {error.strerror}.") from error
        try:
            for orphan in (*directory.glob(".*.tmp"), *directory.glob("checkpoints/.*.tmp")):
                orphan.unlink()  # of a process that was killed while it wrote
            run = cls.read(directory)
            run.lock = (directory / ".lock").stat()
            yield run
        finally:
            lock.release()
            _remove_if_unused(directory)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def list_checkpoints(self) -> list[Path]:
        """Those that are there: last, the one before, best."""
        return [path for name in (LAST, PREVIOUS, BEST) if (path := self.checkpoints / name).is_file()]

    def is_finished(self, steps: int) -> bool:
        """Whether so many optimizer steps, or more, have been made, and the run was ended there."""
        return self.status.state == "finished" and self.status.step >= steps

    @property
    def is_ours(self) -> bool:
        """Whether the directory is still the one whose lock this process holds; somebody may have deleted it."""
        path = self.directory / ".lock"
        return self.lock is None or (path.exists() and os.path.samestat(path.stat(), self.lock))

    def check_ours(self) -> None:
        """Raise a UserError if the directory was deleted, and perhaps made anew by another process, meanwhile."""
        if not self.is_ours:
            raise UserError(f"{self.directory} was deleted while this process trained in it, which ends here.")

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json: the newest value of each metric, by whichever process, and the step that was made."""
        self.check_ours()
        newest = {**self.read_metrics(), **metrics}
        write_json(self.directory / "metrics.json", {**dict(sorted(newest.items())), "step": step})

    def read_metrics(self) -> dict[str, Any]:
        """What metrics.json says; empty where there is none."""
        return read_json(self.directory / "metrics.json")

    def end(self, state: State, step: int, error: str | None = None) -> None:
        """Say in status.json how the process that trained here came to its end."""
        self.status.state, self.status.step, self.status.error = state, step, error
        if self.is_ours:
            self.status.write(self.directory)

    def write_checkpoint(self, path: Path, data: bytes | memoryview) -> None:
        """Replace a checkpoint by `data`; a kill at any moment leaves the old file or the new one, whole.

        Its digest is in status.json before the file is in place, beside those that the old file can have: more than
        one if the processes before were killed in between. What last.ckpt held becomes previous.ckpt, unless it was
        damaged.

        Raises:
            OSError: it could not be written; the old files are as they were.
            UserError: the directory was deleted meanwhile.
        """
        self.check_ours()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, data):
            digest = hashlib.sha256(data).hexdigest()
            old, old_previous = self._digests(path.name), self._digests(PREVIOUS)
            moves = path.name == LAST and path.exists() and LAST not in self.damaged
            self.status.checkpoints[path.name] = [digest, *old]
            if moves:
                self.status.checkpoints[PREVIOUS] = [*old, *old_previous]
            self.status.write(self.directory)
            if moves:
                os.replace(path, path.with_name(PREVIOUS))
                self.damaged.discard(PREVIOUS)
                self.placed.pop(PREVIOUS, None)
                if len(old) == 1:
                    self.placed[PREVIOUS] = old[0]
        self.placed[path.name] = digest
        self.damaged.discard(path.name)

    def _digests(self, name: str) -> list[str]:
        """Those that a checkpoint which is there can have."""
        return [self.placed[name]] if name in self.placed else self.status.checkpoints.get(name, [])

    def newest_intact_checkpoint(self, warn: Callable[[str], object] = lambda message: None) -> Path | None:
        """The checkpoint to go on from, None where there is none; `warn` is told of each that is damaged.

        Raises:
            UserError: all that there are are damaged.
        """
        there = self.list_checkpoints()
        for path in there:
            damage = self._damage(path)
            if damage is None:
                return path
            self.damaged.add(path.name)
            warn(f"{damage}; it is left out")
        if there:
            raise UserError(
                f"no checkpoint in {self.checkpoints} is intact: restart=true moves the run aside and begins again."
            )
        return None

    def _damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, None if nothing is."""
        digests = self.status.checkpoints.get(path.name)
        if digests:
            with path.open("rb") as file:
                known = hashlib.file_digest(file, "sha256").hexdigest() in digests
            return None if known else f"{path} is damaged: its digest is not the one in status.json"
        try:  # without a digest, the archive's own checksums decide
            check_archive(path)
        except UserError as error:
            return str(error)
        return None


def _remove_if_unused(directory: Path) -> None:
    """Remove a run's directory in which nothing was written but the lock, and the folders made for it."""
    if [path.name for path in directory.glob("*")] in ([], [".lock"]) and directory.is_dir():
        (directory / ".lock").unlink(missing_ok=True)
        for folder in (directory, *directory.parents[:3]):  # outputs/train/<experiment>/<overrides>
            try:
                folder.rmdir()
            except OSError:
                return


def is_locked(directory: Path) -> bool:
    """Whether a process trains in the directory."""
    lock = directory / ".lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, OSError):
        return True
