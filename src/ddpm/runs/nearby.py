"""Suggestions for an error message: runs near a path that does not exist."""

from collections.abc import Iterable
from pathlib import Path

MAX_DEPTH = 4  # folders between the place to search and a run


def runs_nearby(path: Path, pattern: str) -> list[Path]:
    """Return the directories of runs under the nearest existing folder above `path`, the newest first.

    If that folder is the current one or one above it, which may hold anything, the search starts at outputs/.

    Args:
        pattern: files that a run has, relative to its directory.
    """
    folder = next(parent for parent in (path, *path.parents) if parent.is_dir())
    if Path.cwd().is_relative_to(folder.resolve()):
        folder = Path("outputs")
    files = [file for depth in range(MAX_DEPTH + 1) for file in folder.glob("*/" * depth + pattern)]
    newest_first = sorted(files, key=_time, reverse=True)
    return list(dict.fromkeys(file.parents[pattern.count("/")] for file in newest_first))


def _time(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # a link to nothing, or a checkpoint that its run is replacing
        return 0


def suggest(places: Iterable[Path], limit: int = 5) -> str:
    """Return the end of an error message that lists up to `limit` of the places, empty if there are none."""
    names = list(dict.fromkeys(map(str, places)))[:limit]
    return f"; nearby: {', '.join(names)}" if names else ""
