"""Denoising diffusion probabilistic models: train, sample, evaluate and look inside; see `ddpm --help`."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddpm.training import DDPM

__version__ = "0.1.0"


def load(path: str | Path, config_dir: str | Path | None = None) -> "DDPM":
    """The trained model at `path`, on the CPU and ready to sample.

        model = ddpm.load("outputs/train/quickstart/base")
        images = model.sample(20, labels=range(10), seed=0)  # [20, 1, 28, 28] in [-1, 1]

    Args:
        path: a run's directory (its best checkpoint, else its last), RUN/best, RUN/last, a checkpoint file, an exported
            folder, hf://OWNER/NAME on the Hugging Face Hub, or the name of a model in the package.
        config_dir: a folder of your own YAMLs, if the model has parts that only they name.

    Raises:
        ddpm.errors.UserError: there is no such checkpoint, it is damaged, or it names a target of no known YAML.
    """
    # torch and Lightning take seconds to import.
    from ddpm.config import conf_dir, trusted_targets, user_path
    from ddpm.runs import find_checkpoint
    from ddpm.training import load_model

    folders = [conf_dir()] if config_dir is None else [conf_dir(), user_path(config_dir)]
    return load_model(find_checkpoint(str(path)), trusted=trusted_targets(folders))
