import pytest
import torch

from ddpm.devices import device_name, lightning_arguments


@pytest.mark.parametrize(
    ("abilities", "accelerator", "precision"),
    [
        ({}, "cpu", "32-true"),
        ({"amx": True}, "cpu", "bf16-mixed"),
        ({"amx": True}, "auto", "bf16-mixed"),
        ({"avx512_bf16": True}, "cpu", "bf16-mixed"),
        ({"amx": True, "capability": "AVX2"}, "cpu", "32-true"),  # by ATEN_CPU_CAPABILITY=avx2
        ({}, "auto", "32-true"),
        ({"cuda": 1}, "cuda", "bf16-mixed"),
        ({"cuda": 1}, "gpu", "bf16-mixed"),
        ({"cuda": 1}, "auto", "bf16-mixed"),
        ({"cuda": 1, "cuda_bf16": False, "amx": True}, "auto", "32-true"),  # the GPU is taken, and is an old one
        ({"cuda": 1}, "cpu", "32-true"),
        ({"xpu": 1}, "xpu", "bf16-mixed"),
        ({"xpu": 1}, "auto", "bf16-mixed"),
        ({"amx": True, "mps": True}, "mps", "32-true"),
    ],
)
def test_auto_is_bfloat16_if_the_device_is_faster_with_it(machine, abilities, accelerator, precision):
    machine(**abilities)
    assert lightning_arguments(accelerator)["precision"] == precision


@pytest.mark.parametrize(
    ("precision", "accelerator"),
    [
        ("32-true", "cpu"), ("bf16-mixed", "cpu"),
        ("32-true", "xpu"), ("bf16-mixed", "xpu"),
        ("32-true", "cuda"), ("bf16-mixed", "cuda"), ("16-mixed", "cuda"),
        ("16-mixed", "mps"),
    ],
)  # fmt: skip
def test_an_explicit_precision_is_unchanged(machine, precision, accelerator):
    machine(cuda=1, xpu=1, mps=True)
    assert lightning_arguments(accelerator, precision=precision)["precision"] == precision


@pytest.mark.parametrize(
    ("precision", "accelerator", "message"),
    [
        ("16-mixed", "cpu", "accelerator=cpu does not support precision=16-mixed: use bf16-mixed or 32-true"),
        ("16-mixed", "xpu", "accelerator=xpu does not support precision=16-mixed: use bf16-mixed or 32-true"),
        ("bf16-mixed", "cuda", "bf16-mixed needs a GPU with bfloat16.*use 32-true"),
        ("64-true", "cpu", "64-true is none of auto, 32-true"),
    ],
)
def test_a_precision_that_the_device_lacks_is_refused(machine, precision, accelerator, message):
    machine(cuda=1, xpu=1, cuda_bf16=False)
    with pytest.raises(ValueError, match=message):
        lightning_arguments(accelerator, precision=precision)


def test_the_name_of_a_cpu_has_the_number_of_threads():
    assert device_name(torch.device("cpu")).startswith("cpu: ")
    assert f"{torch.get_num_threads()} threads" in device_name(torch.device("cpu"))


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_the_name_of_a_gpu_is_that_of_its_driver(monkeypatch, kind):
    monkeypatch.setattr(getattr(torch, kind), "get_device_name", lambda device: f"maker's name of {device}")
    assert device_name(torch.device(kind, 1)) == f"maker's name of {kind}:1"
