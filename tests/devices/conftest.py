"""A fixture that simulates other machines."""

from collections.abc import Callable

import lightning.fabric.accelerators as fabric
import lightning.pytorch.accelerators as pytorch
import pytest
import torch


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Simulates a machine with these numbers of devices and a CPU with these instructions."""

    def pretend(
        cuda: int = 0,
        xpu: int = 0,
        mps: bool = False,
        cuda_bf16: bool = True,
        amx: bool = False,
        avx512_bf16: bool = False,
        capability: str = "AVX512",
    ) -> None:
        monkeypatch.setattr(torch.xpu, "is_available", lambda: xpu > 0)
        monkeypatch.setattr(torch.xpu, "device_count", lambda: xpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda_bf16)
        monkeypatch.setattr("lightning.fabric.accelerators.cuda.num_cuda_devices", lambda: cuda)
        monkeypatch.setattr("lightning.pytorch.accelerators.cuda.num_cuda_devices", lambda: cuda)
        for accelerators in (fabric, pytorch):
            monkeypatch.setattr(accelerators.MPSAccelerator, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)

    return pretend
