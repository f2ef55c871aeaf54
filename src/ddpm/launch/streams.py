"""stdout and stderr of a process: no write to them raises. Imports only the standard library."""

import errno
import io
import os
import select
import sys
from typing import Any

GONE = (errno.EPIPE, errno.EIO)  # the reader of a pipe, the terminal


class LossyFile(io.FileIO):
    """A file descriptor whose writes never fail: what cannot be written is lost. The descriptor stays open.

    A pipe whose reader has ended and a closed terminal are no reason to end a training. Every other error, such as a
    full disk, is named once on stderr.
    """

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "wb", closefd=False)
        self.has_warned = False

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # another process made the descriptor non-blocking, and the pipe is full
                    select.select([], [self], [])
                rest = rest[written or 0 :]
        except OSError as error:
            if error.errno not in GONE and not self.has_warned:
                self.has_warned = True
                print(f"ddpm: output is lost: {error.strerror}", file=sys.stderr)
        return size


def protect_streams() -> None:
    """Let no write to stdout and stderr raise. A character that the encoding lacks becomes `?`.

    Descriptors 0 to 2 that are closed (`>&-`) are opened on /dev/null, or a file that is opened later would take their
    number and receive the output. Streams that Python code has replaced stay as they are.
    """
    while (unused := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(unused, True)
    os.close(unused)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if old is not getattr(sys, f"__{name}__"):
            continue
        if old is not None:
            old.flush()
        new = io.TextIOWrapper(
            LossyFile(descriptor),  # unbuffered: TextIOWrapper itself joins small writes
            encoding=old.encoding if old else "utf-8",
            errors="replace",
            line_buffering=old.line_buffering if old else False,
            write_through=old.write_through if old else False,
        )
        setattr(sys, name, new)
