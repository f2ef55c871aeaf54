"""A run's own log."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Within the block, add what is logged to the file at `path`; an exception that ends it leaves its traceback."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    except Exception:
        record = root.makeRecord("ddpm", logging.ERROR, __file__, 0, "failed", (), sys.exc_info())
        handler.handle(record)  # here alone: the command shows it on the screen itself
        raise
    finally:
        root.removeHandler(handler)
        handler.close()
