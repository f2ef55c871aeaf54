import pytest
import torch

from ddpm.devices import device_name, resolve_precision


@pytest.fixture
def machine(monkeypatch):
    """Pretend that the machine has these abilities."""

    def pretend(cuda=False, cuda_bf16=False, amx=False, avx512_bf16=False):
        monkeypatch.setattr("lightning.fabric.accelerators.CUDAAccelerator.is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: cuda_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)

    return pretend


@pytest.mark.parametrize(
    ("abilities", "accelerator", "precision"),
    [
        ({}, "cpu", "32-true"),
        ({"amx": True}, "cpu", "bf16-mixed"),
        ({"amx": True}, "auto", "bf16-mixed"),
        ({"avx512_bf16": True}, "cpu", "bf16-mixed"),
        ({}, "auto", "32-true"),
        ({"cuda": True, "cuda_bf16": True}, "cuda", "bf16-mixed"),
        ({"cuda": True, "cuda_bf16": True}, "gpu", "bf16-mixed"),
        ({"cuda": True, "cuda_bf16": True}, "auto", "bf16-mixed"),
        ({"cuda": True, "amx": True}, "auto", "32-true"),  # the GPU is taken, and is an old one
        ({"cuda": True, "cuda_bf16": True}, "cpu", "32-true"),
        ({"amx": True}, "cuda", "32-true"),  # it is not there: Lightning will say so
        ({"amx": True}, "mps", "32-true"),
    ],
)
def test_bfloat16_where_the_device_is_fast_in_it(machine, abilities, accelerator, precision):
    machine(**abilities)
    assert resolve_precision("auto", accelerator) == precision


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_what_the_user_says_counts(machine, precision):
    machine(amx=True)
    assert resolve_precision(precision, "cpu") == precision


def test_a_precision_that_the_chain_cannot_have_is_refused():
    with pytest.raises(ValueError, match="64-true is none of auto, 32-true"):
        resolve_precision("64-true", "cpu")


def test_the_name_of_a_cpu_tells_the_threads():
    assert device_name(torch.device("cpu")).startswith("cpu: ")
    assert f"{torch.get_num_threads()} threads" in device_name(torch.device("cpu"))
