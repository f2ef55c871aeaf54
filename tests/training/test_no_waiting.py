"""The training loop queues its steps on a GPU without waiting for it.

Where there is no GPU, torch's device "meta" stands for one: its tensors have no values, so reading one is an error.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import lightning as L
import pytest
import stand_in
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from small import small_model, small_unet
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm.config import build, conf_dir
from ddpm.diffusion import DDIM, Ancestral, ClassifierFree, DPMSolverPP, Sampler, SDEDPMSolverPP
from ddpm.runs import Run
from ddpm.seeding import ImageNoise, Stream
from ddpm.training import build_model
from ddpm.training.callbacks import EMASnapshots
from ddpm.training.loggers import build_loggers
from ddpm.training.trainer import build_trainer, connect, ignore_expected_warnings

FIRST, LAST = 2, 4
"""steps that must not wait; the steps before make the optimizer's state and the like"""


class NoValues(stand_in.StandIn):
    """An accelerator whose device is "meta"; it is registered as an XPU."""

    def setup_device(self, device):
        assert device.type == "meta"

    @staticmethod
    def get_parallel_devices(devices):
        return [torch.device("meta")] * len(devices)


class RefuseWaitingCopies(TorchDispatchMode):
    """Refuses copies from the CPU to "meta" that would wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default:
            source, waits = args[0], not kwargs.get("non_blocking")
        elif func is torch.ops.aten.copy_.default:
            source, waits = args[1], not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        else:
            return result
        assert not (source.device.type == "cpu" and result.device.type == "meta" and waits), "a copy waits for the GPU"
        return result


@contextmanager
def waiting_is_an_error(device: str) -> Iterator[None]:
    if device == "meta":
        with RefuseWaitingCopies():
            yield
        return
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    yield
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")


class Enough(Exception):
    pass


class Strict(L.Callback):
    """Refuses all waiting from step `FIRST` to step `LAST`, then ends the training."""

    def __init__(self, device: str):
        self.device = device
        self.refused = ExitStack()

    def on_train_start(self, trainer, model):
        snapshots = [callback for callback in trainer.callbacks if isinstance(callback, EMASnapshots)]
        for average in (model.ema, *(average for callback in snapshots for average in callback.averages.values())):
            average.updates = 0  # else it is read once

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        if batch_idx == FIRST * trainer.accumulate_grad_batches:
            self.refused.enter_context(waiting_is_an_error(self.device))
        if trainer.global_step == LAST:
            raise Enough

    def on_exception(self, trainer, *args):
        self.refused.close()
        if trainer.strategy.root_device.type == "meta":
            trainer._teardown = lambda: None  # it would copy the weights to the CPU


@pytest.fixture
def meta(monkeypatch):
    """Make "meta" an accelerator with pinned memory."""
    real = stand_in.REGISTRIES[0]["xpu"]
    stand_in.register(stand_in.ENTRY | {"accelerator": NoValues})
    for module in ("ddpm.devices.transfer", "ddpm.data.images"):
        monkeypatch.setattr(f"{module}.copies_asynchronously", lambda device: device.type == "meta")
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.device.type == "meta"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    yield "meta"
    stand_in.register(real)


def train(device: str, folder, *overrides: str) -> L.Trainer:
    """Train with the callbacks and the logger of `ddpm train`."""
    few = [
        "data=mnist_mini", "data.batch_size=8", "model=unet_tiny", "model.channels=8", "model.multipliers=[1,2]",
        "model.attention=[]", "trainer.precision=32-true",
        f"trainer.accelerator={'xpu' if device == 'meta' else device}", "trainer.log_every_n_steps=100",
        "trainer.limit_val_batches=0", "callbacks.pictures=null", "callbacks.best=null",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [*few, *overrides])
    cfg.paths.run = str(folder)
    if device == "meta" and "fused" in cfg.optimizer.algorithm:  # meta has no fused kernels
        cfg.optimizer.algorithm.fused = False
    ignore_expected_warnings()
    data = build(cfg.data).ready()
    data.augmentation = None if cfg.augmentation is None else build(cfg.augmentation)
    callbacks = [build(node) for node in cfg.callbacks.values() if node is not None]
    model = build_model(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    with Run.open(folder) as run:
        trainer = build_trainer(cfg, [*callbacks, Strict(device)], data)
        connect(trainer, run, build_loggers(cfg.logger, run, 0))
        with pytest.raises(Enough):
            trainer.fit(model, data)
    return trainer


CASES = {
    "as it is": [],
    "more work": ["model.num_classes=10", "model.dropout=0.1", "augmentation=shift", "objective=min_snr"],
    "other ways": [
        *("data.on_device=true", "optimizer=muon", "trainer.accumulate_grad_batches=2"),
        *("trainer.gradient_clip_val=null", "callbacks=[default,ema_snapshots]"),
    ],
}
cases = pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)


@cases
@pytest.mark.filterwarnings("ignore:.*pin_memory. argument is set")  # there is no GPU
def test_no_step_reads_a_number_or_copies_with_waiting(meta, tmp_path, overrides):
    train(meta, tmp_path, *overrides)


@cases
@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_no_step_waits_for_the_gpu(gpu, tmp_path, overrides, precision):
    train(gpu, tmp_path, f"trainer.precision={precision}", *overrides)


def sample(device: str, sampler: Sampler) -> None:
    model = small_model(small_unet(num_classes=3)).to(device)
    noise = ImageNoise(Stream.SAMPLING, 0, indices=range(2))
    x_T = torch.randn(2, *model.image_shape, device=device)
    network = model.conditioned(torch.tensor([0, 1], device=device), ClassifierFree(2.0))
    steps = sampler.iterate(network, model.diffusion, x_T, noise)
    next(steps)  # tables are copied
    with waiting_is_an_error(device):
        for _ in range(3):
            next(steps)


samplers = pytest.mark.parametrize(
    "sampler", [Ancestral(), DDIM(5, eta=1.0), DPMSolverPP(5), SDEDPMSolverPP(5)], ids=lambda one: type(one).__name__
)


@samplers
def test_no_step_of_a_sampler_waits(meta, sampler):
    sample(meta, sampler)


@samplers
@pytest.mark.cuda
def test_no_step_of_a_sampler_waits_for_the_gpu(gpu, sampler):
    sample(gpu, sampler)
