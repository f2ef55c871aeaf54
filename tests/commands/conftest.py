"""A trained run for all tests of commands."""

import os
import warnings
from pathlib import Path

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from small import trained_a_little

from ddpm.config import build, conf_dir
from ddpm.training import build_model

TINY = [
    "data=mnist_mini",
    "model=unet_tiny",
    "model.channels=8",
    "schedule.num_steps=30",
    "data.batch_size=8",
]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory with the checkpoint of a tiny model, trained for two real steps: 30 timesteps, 28×28."""
    return train(tmp_path_factory.mktemp("train") / "tiny")


@pytest.fixture(scope="session")
def conditional_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as `tiny_run` with labels, which change the output visibly."""
    return train(tmp_path_factory.mktemp("train") / "conditional", "model.num_classes=10", std=0.1)


def train(run: Path, *overrides: str, std: float = 0.0) -> Path:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [*TINY, *overrides])
    config = OmegaConf.to_container(cfg, resolve=True)
    model = trained_a_little(build_model(config), std)  # type: ignore[arg-type]
    trainer = L.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found .* module.* in eval mode")  # the moving average
        trainer.fit(model, build(cfg.data))
    (run / "checkpoints").mkdir(parents=True)
    trainer.save_checkpoint(run / "checkpoints" / "last.ckpt")
    return run


@pytest.fixture
def real_digits(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Share the features of the real digits, which `evaluate` caches, between the tests and their processes."""
    root = tmp_path_factory.getbasetemp()
    shared = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "real_digits"
    shared.mkdir(exist_ok=True)
    link = tmp_path / "outputs" / "evaluate" / ".real_images"
    link.parent.mkdir(parents=True)
    link.symlink_to(shared)


@pytest.fixture
def train_tiny():
    """Returns `train`."""
    return train
