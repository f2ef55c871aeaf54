"""What would become of a job, told before it is started."""

from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from ddpm.runs.run import Run


class Outlook(NamedTuple):
    """What a job would do."""

    directory: Path
    """of its results"""
    what: str
    """in words"""
    is_done: bool = False
    """nothing is left to do"""
    steps: int | None = None
    """optimizer steps that it is to make in all, where it trains"""


def outlook_of_run(directory: Path, max_steps: int, restart: bool = False) -> Outlook:
    """What training in `directory` up to `max_steps` optimizer steps would do. Touches nothing there."""

    def will(what: str, is_done: bool = False) -> Outlook:
        return Outlook(directory, what, is_done, max_steps)

    if is_locked(directory):
        return will("refused: another process trains there")
    run = Run.read(directory)
    if restart and directory.exists():
        return will("move the run there aside, and begin again")
    if not run.list_checkpoints():
        return will("begin again (it failed before)" if run.status.state == "failed" else "begin")
    if run.is_finished(max_steps):
        return will(f"nothing: it is finished, {run.status.step} steps", is_done=True)
    return will(f"go on from its last checkpoint ({run.status.state} at step {run.status.step})")


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
