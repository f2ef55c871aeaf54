"""The log file of a run."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append log messages to the file `path` within the block, and the traceback of an exception that leaves it."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    except Exception:
        record = root.makeRecord("ddpm", logging.ERROR, __file__, 0, "failed", (), sys.exc_info())
        handler.handle(record)  # only into the file: the command prints the error itself
        raise
    finally:
        root.removeHandler(handler)
        handler.close()
