"""What happens beside the training's own steps: one small file each."""

from ddpm.training.callbacks.best_checkpoint import BestCheckpoint
from ddpm.training.callbacks.hyperparameters import SweptHyperparameters
from ddpm.training.callbacks.last_checkpoint import LastCheckpoint
from ddpm.training.callbacks.progress_bar import RunProgressBar
from ddpm.training.callbacks.run_status import RunStatus
from ddpm.training.callbacks.samples import SamplePictures
from ddpm.training.callbacks.throughput import ImagesPerSecond

__all__ = [
    "BestCheckpoint",
    "ImagesPerSecond",
    "LastCheckpoint",
    "RunProgressBar",
    "RunStatus",
    "SamplePictures",
    "SweptHyperparameters",
]
