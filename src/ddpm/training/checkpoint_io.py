"""How Lightning writes a run's checkpoints."""

import errno
import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ddpm.errors import UserError
from ddpm.runs.run import LAST, PREVIOUS, Run


class RunCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints through `Run.write_checkpoint`: whole or not at all.

    Lightning's own goes through $TMPDIR and copies across file systems, where a kill leaves half a file.
    """

    def __init__(self, run: Run):
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raise UserError when the disk is full; the checkpoints that are there stay whole."""
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

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, if it is a file below the run's directory and not one that the run continues from.

        A callback reads from its checkpoint which file it should remove.
        """
        path = Path(path)
        is_inside = path.absolute().is_relative_to(self.run.directory.absolute()) and ".." not in path.parts
        if is_inside and path.suffix == ".ckpt" and path.is_file() and path.name not in (LAST, PREVIOUS):
            path.unlink()
