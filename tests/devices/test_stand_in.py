"""Training on CPUs that are registered as XPUs: everything but the hardware is tested."""

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import stand_in
import torch
from small import small_model
from stand_in import train

from ddpm.devices import lightning_arguments
from ddpm.devices.xpu import SingleXPUStrategy

XPU = {"accelerator": "xpu", "precision": "32-true"}
CPU = {"accelerator": "cpu", "precision": "32-true"}


@pytest.fixture(autouse=True)
def two_xpus():
    real = stand_in.REGISTRIES[0]["xpu"]
    stand_in.register(stand_in.ENTRY)
    yield
    stand_in.register(real)


def weights(trainer):
    return trainer.lightning_module.state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_equals_that_on_the_cpu_in_both_precisions(precision):
    on_xpu = train(3, accelerator="xpu", precision=precision)
    assert type(on_xpu.strategy) is SingleXPUStrategy
    assert equal(weights(on_xpu), weights(train(3, accelerator="cpu", precision=precision)))


def test_bfloat16_changes_the_result():
    assert not equal(weights(train(3, accelerator="xpu", precision="bf16-mixed")), weights(train(3, **XPU)))


@pytest.mark.parametrize(("first", "then"), [(XPU, XPU), (XPU, CPU), (CPU, XPU)])
def test_a_run_continues_on_another_device(tmp_path, monkeypatch, first, then):
    trainer = train(2, **first)
    with monkeypatch.context() as patch:
        if first is XPU:  # as torch marks what lay on an XPU
            patch.setattr(torch.serialization, "location_tag", lambda storage: "xpu:0")
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    if first is XPU:
        with pytest.raises(RuntimeError, match="xpu"):
            torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert equal(weights(train(4, tmp_path / "a.ckpt", **then)), weights(train(4, **CPU)))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric_autocasts_on_the_device(precision):
    fabric = L.Fabric(**lightning_arguments("xpu", precision=precision))
    fabric.launch()
    assert fabric.device.type == "cpu"
    with fabric.autocast():
        output = torch.ones(2, 2) @ torch.ones(2, 2)
    assert output.dtype == (torch.bfloat16 if precision == "bf16-mixed" else torch.float32)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    path = tmp_path / "two.ckpt"
    helpers = Path(stand_in.__file__).parent
    done = subprocess.run(
        [sys.executable, stand_in.__file__, str(path)],
        env=os.environ | {"PYTHONPATH": str(helpers)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    two = torch.load(path, weights_only=True)["state_dict"]
    one = weights(train(4, **XPU))
    # Another order of sums changes gradients near 0, and Adam's steps with them, by little beside the rate of 1e-3.
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    assert not equal(one, small_model(seed=3).state_dict())
