"""How Lightning writes a run's checkpoints."""

import errno
import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ddpm.errors import UserError
from ddpm.runs.run import Run


class RunCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints through `Run.write_checkpoint`: whole or not at all, with their digests.

    Lightning's own goes through $TMPDIR and copies across file systems, where a kill leaves half a file.
    """

    def __init__(self, run: Run):
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises UserError when the disk is full; the checkpoints that are there stay whole."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            self.run.write_checkpoint(Path(path), buffer.getbuffer())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"the disk is full: {path} needs {buffer.tell() / 1e6:.0f} MB. The checkpoints there are whole; "
                    "make room, and the same command goes on."
                ) from error
            raise
