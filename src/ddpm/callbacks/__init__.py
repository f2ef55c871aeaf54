"""What happens beside the training's own steps: one small file each."""

from ddpm.callbacks.best_checkpoint import BestCheckpoint
from ddpm.callbacks.hyperparameters import SweptHyperparameters
from ddpm.callbacks.last_checkpoint import LastCheckpoint
from ddpm.callbacks.progress import RunProgressBar
from ddpm.callbacks.pruning import StopHopelessTrial
from ddpm.callbacks.run_status import RunStatus
from ddpm.callbacks.samples import SamplePictures
from ddpm.callbacks.throughput import ImagesPerSecond

__all__ = [
    "BestCheckpoint",
    "ImagesPerSecond",
    "LastCheckpoint",
    "RunProgressBar",
    "RunStatus",
    "SamplePictures",
    "StopHopelessTrial",
    "SweptHyperparameters",
]
