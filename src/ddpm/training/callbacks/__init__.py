"""Callbacks of a training run, one per file."""

from ddpm.training.callbacks.best_checkpoint import BestCheckpoint
from ddpm.training.callbacks.ema_snapshots import EMASnapshots
from ddpm.training.callbacks.last_checkpoint import LastCheckpoint
from ddpm.training.callbacks.progress_bar import RunProgressBar
from ddpm.training.callbacks.run_status import RunStatus
from ddpm.training.callbacks.samples import SamplePictures
from ddpm.training.callbacks.throughput import ImagesPerSecond

__all__ = [
    "BestCheckpoint",
    "EMASnapshots",
    "ImagesPerSecond",
    "LastCheckpoint",
    "RunProgressBar",
    "RunStatus",
    "SamplePictures",
]
