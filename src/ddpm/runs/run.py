"""A run's directory, and the lock that lets only one process train in it."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from ddpm.errors import UserError
from ddpm.runs.checkpoints import check_archive
from ddpm.runs.files import check_links, make_folder, read_json, replacing
from ddpm.runs.status import State, Status, write_json

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


@dataclass
class Run:
    """A run's directory and its status. To train in the directory, use `Run.open`."""

    directory: Path
    status: Status
    damaged: set[str] = field(default_factory=set)
    """names of damaged checkpoints that have not been replaced yet"""
    lock: os.stat_result | None = None
    """device and inode of the lock file when this process took the lock"""

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Return the run as it is on disk, without locking it."""
        return cls(directory, Status.read(directory) or Status())

    @classmethod
    @contextmanager
    def open(cls, directory: Path) -> Iterator[Self]:
        """Create the directory if needed, and hold its lock in the `with` block. A crash also releases the lock.

        A directory that contains only the lock is removed at the end.

        Raises:
            UserError: another process holds the lock, the directory is not writable, its file system does not
                support locks, or a link in the directory points outside it.
        """
        check_links(directory)
        make_folder(directory)
        lock = FileLock(directory / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            status = Status.read(directory)
            who = f"process {status.pid} on {status.host}" if status else "another process"
            raise UserError(f"{who} is training in {directory}: wait for it, or stop it.") from None
        except OSError as error:
            raise UserError(
                f"cannot write or lock a file in {directory}: {error.strerror}. "
                "Set paths.outputs=DIR to store runs elsewhere."
            ) from error
        try:
            for orphan in (*directory.glob(".*.tmp"), *directory.glob("checkpoints/.*.tmp")):
                orphan.unlink()  # from a process that was killed while it wrote
            run = cls.read(directory)
            run.lock = (directory / ".lock").stat()
            yield run
        finally:
            lock.release()
            _remove_if_unused(directory)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.directory / "checkpoints"

    def list_checkpoints(self) -> list[Path]:
        """Return the checkpoints that exist, in the order last, previous, best."""
        return [path for name in (LAST, PREVIOUS, BEST) if (path := self.checkpoints / name).is_file()]

    def is_finished(self, steps: int) -> bool:
        """Return whether the run finished with at least `steps` optimizer steps, or a callback stopped it for good."""
        return self.status.state == "stopped" or (self.status.state == "finished" and self.status.step >= steps)

    @property
    def is_ours(self) -> bool:
        """Whether the directory is still the locked one: the user may have deleted or replaced the directory."""
        path = self.directory / ".lock"
        return self.lock is None or (path.exists() and os.path.samestat(path.stat(), self.lock))

    def check_ours(self) -> None:
        """Raise a UserError if the directory was deleted, even if another process has created it again."""
        if not self.is_ours:
            raise UserError(f"{self.directory} was deleted while this process trained in it. The training stops.")

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write `step` and the metrics to metrics.json. Metrics that are only in the file keep their values."""
        self.check_ours()
        newest = {**self.read_metrics(), **metrics}
        write_json(self.directory / "metrics.json", {**dict(sorted(newest.items())), "step": step})

    def read_metrics(self) -> dict[str, Any]:
        """Return the content of metrics.json, or an empty dict if the file does not exist."""
        return read_json(self.directory / "metrics.json")

    def end(self, state: State, step: int, error: str | None = None) -> None:
        """Write the final state, the step and the error to status.json, unless the directory was deleted."""
        self.status.state, self.status.step, self.status.error = state, step, error
        if self.is_ours:
            self.status.write(self.directory)

    def write_checkpoint(self, path: Path, data: bytes | memoryview) -> None:
        """Write `data` to a temporary file, then rename it to `path`.

        The old last.ckpt becomes previous.ckpt before that, unless it is damaged. A kill between the two renames leaves
        only previous.ckpt.

        Raises:
            OSError: the file could not be written. An intact checkpoint remains if there was one.
            UserError: the directory was deleted.
        """
        self.check_ours()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, data):  # here the new file is complete and not yet renamed
            if path.name == LAST and path.exists() and LAST not in self.damaged:
                os.replace(path, path.with_name(PREVIOUS))
                self.damaged.discard(PREVIOUS)
        self.damaged.discard(path.name)

    def checkpoint_to_resume(self, warn: Callable[[str], object] = lambda message: None) -> Path | None:
        """Return the checkpoint from which the run continues: the first intact one of last, previous and best, or None.

        Args:
            warn: called with a message for each damaged checkpoint.

        Raises:
            UserError: checkpoints exist, but all are damaged.
        """
        found = self.list_checkpoints()
        for path in found:
            try:
                check_archive(path)
            except UserError as error:
                self.damaged.add(path.name)
                warn(f"{error}. It is not used.")
            else:
                return path
        if found:
            raise UserError(
                f"no checkpoint in {self.checkpoints} is intact: "
                "restart=true moves the run aside and starts from step 0."
            )
        return None


def _remove_if_unused(directory: Path) -> None:
    """Remove a run's directory if it contains only the lock. Then remove the empty folders above the directory."""
    if [path.name for path in directory.glob("*")] in ([], [".lock"]) and directory.is_dir():
        (directory / ".lock").unlink(missing_ok=True)
        for folder in (directory, *directory.parents[:3]):  # outputs/train/<experiment>/<overrides>
            try:
                folder.rmdir()
            except OSError:
                return


def is_locked(directory: Path) -> bool:
    """Return whether a process holds the lock of the directory, and so trains in it."""
    try:
        with (directory / ".lock").open("rb") as file:  # opened for reading: the file may belong to another user
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno == errno.ENOSYS  # without flock, filelock treats an existing lock file as a held lock
    return False
