"""Numbers of fixed runs: the network, its initialisation, losses, samplers and bound have not drifted.

`python tests/test_snapshot.py` records them anew; do so only where a change of the numbers is meant.
"""

import json
import os
import platform
import warnings
from pathlib import Path

import lightning as L
import pytest
import safetensors.torch
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from ddpm.config import build, conf_dir
from ddpm.data import to_model_range
from ddpm.diffusion import vlb_terms
from ddpm.seeding import ImageNoise, Stream
from ddpm.training import DDPM, build_model

PATH = Path(__file__).parent / "snapshots" / "numbers.safetensors"
MACHINE = PATH.with_suffix(".json")
TINY = [
    "data=mnist_mini",
    "data.batch_size=16",
    "model=unet_tiny",
    "model.channels=8",
    "model.dropout=0.1",
    "schedule.num_steps=100",
    "optimizer.lr=2e-3",
    "optimizer.warmup_steps=5",
    "optimizer.decay_steps=40",
    "ema.decay=0.9",
]
SAMPLERS = {"ancestral": "uniform", "ddim": "uniform", "dpm_solver": "trailing", "sde_dpm_solver": "trailing"}
"""with the spacing of the recorded images"""


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *args):
        self.values.append(outputs["loss"].detach().clone())


def train(steps: int, *overrides: str) -> tuple[DDPM, Tensor]:
    """The model after `steps` optimizer steps, and the loss of each."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [*TINY, *overrides])
    model = build_model(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    data = build(cfg.data)
    data.setup()
    losses = Losses()
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[losses],
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
        trainer.fit(model, data)
    return model.eval(), torch.stack(losses.values)


def numbers() -> dict[str, Tensor]:
    """20 losses, 5 of each other objective, one image of each sampler, the bound of four images."""
    model, losses = train(20)
    found = {"losses": losses}
    for objective in ("vlb", "min_snr"):
        found[f"losses_{objective}"] = train(5, f"objective={objective}", "objective/timesteps=low_discrepancy")[1]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        choices = ([f"sampler={name}", f"sampler.spacing={spacing}"] for name, spacing in SAMPLERS.items())
        samplers = [build(compose("sample", [*choice, "sampler.steps=8"]).sampler) for choice in choices]
    for name, sampler in zip(SAMPLERS, samplers, strict=True):
        found[f"sample_{name}"] = model.sample(1, sampler, seed=3)
    data = build({"_target_": "ddpm.data.MNISTMini"})
    data.setup()
    x0 = to_model_range(data.split("test").images[:4])
    with torch.no_grad():
        randn_like = ImageNoise(Stream.EVALUATION, 7, indices=range(4))
        bound = vlb_terms(model.ema, model.diffusion, x0, randn_like=randn_like)
    found["bound"] = bound.total(100)
    return found


def machine() -> dict[str, str]:
    """What decides the last bits."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if line.startswith(("cpu family", "model\t"))]
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "processor": " ".join([platform.machine(), *("".join(line.split()) for line in models[:2])]),
    }


@pytest.fixture(scope="module")
def found():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield numbers()
    torch.set_num_threads(threads)


def test_the_numbers_are_those_of_the_snapshot(found):
    """To the bit on the machine that recorded them, to rounding on others."""
    expected = safetensors.torch.load_file(PATH)
    assert found.keys() == expected.keys()
    exact = machine() == json.loads(MACHINE.read_text())
    for name, value in expected.items():
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    safetensors.torch.save_file(numbers(), PATH)
    MACHINE.write_text(json.dumps(machine(), indent=2) + "\n")
