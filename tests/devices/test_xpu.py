"""XPUs in Lightning with a mocked `torch.xpu`: devices, autocast, process group, DDP."""

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from ddpm.devices import lightning_arguments
from ddpm.devices.xpu import XPUAccelerator


@pytest.fixture(params=["Trainer", "Fabric"])
def strategy_of(request, machine):
    """Returns the strategy of Trainer or Fabric with these settings, on a simulated machine with four XPUs."""
    machine(xpu=4)

    def build(devices, num_nodes=1, precision="auto"):
        arguments = lightning_arguments("xpu", devices, num_nodes, precision)
        if request.param == "Fabric":
            return L.Fabric(**arguments)._strategy
        return L.Trainer(**arguments, logger=False, enable_checkpointing=False).strategy

    return build


@pytest.fixture
def calls(monkeypatch):
    """Records the names of the calls to torch instead of making them."""
    made = {}

    def record(owner, name):
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: made.update({name: (args, kwargs)}))

    record(torch.xpu, "set_device")
    record(torch.xpu, "empty_cache")
    record(torch.distributed, "init_process_group")
    return made


@pytest.mark.parametrize(
    ("devices", "num_nodes", "first", "processes"),
    [(1, 1, 0, 1), ([2], 1, 2, 1), ("3,", 1, 3, 1), (2, 1, 0, 2), ([3, 1], 1, 3, 2), (-1, 1, 0, 4), (2, 3, 0, 6)],
)
def test_the_requested_devices_are_used(strategy_of, devices, num_nodes, first, processes):
    strategy = strategy_of(devices, num_nodes)
    assert isinstance(strategy.accelerator, XPUAccelerator)
    assert strategy.root_device == torch.device("xpu", first)
    assert strategy.world_size == processes


@pytest.mark.parametrize("devices", [1, 2])
def test_bfloat16_uses_autocast_for_xpus(strategy_of, devices):
    strategy = strategy_of(devices)
    plugin = getattr(strategy, "precision_plugin", None) or strategy.precision
    assert (plugin.precision, plugin.device, plugin.scaler) == ("bf16-mixed", "xpu", None)


@pytest.mark.parametrize("devices", [1, 2])
def test_float32_uses_no_autocast(strategy_of, devices):
    strategy = strategy_of(devices, precision="32-true")
    plugin = getattr(strategy, "precision_plugin", None) or strategy.precision
    assert plugin.precision == "32-true"


def test_several_processes_use_xccl_each_on_its_device(strategy_of, calls, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    strategy = strategy_of([3, 1])
    strategy.setup_environment()
    assert calls["set_device"] == ((torch.device("xpu", 3),), {})
    (backend,), group = calls["init_process_group"]
    assert backend == "xccl"
    assert (group["rank"], group["world_size"], group["device_id"]) == (0, 2, torch.device("xpu", 3))


def test_one_device_needs_no_process_group(strategy_of, calls):
    strategy_of([2]).setup_environment()
    assert calls == {"set_device": ((torch.device("xpu", 2),), {})}


def test_ddp_opens_no_cuda_stream(strategy_of, monkeypatch):
    """A failure means that Lightning no longer decides by the device ids whether it opens the stream."""
    for module in ("pytorch", "fabric"):
        monkeypatch.setattr(f"lightning.{module}.strategies.ddp.DistributedDataParallel", lambda **kwargs: kwargs)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: pytest.fail("there is no CUDA"))
    strategy = strategy_of([3, 1])
    wrap = getattr(strategy, "_setup_model", None) or strategy.setup_module
    model = torch.nn.Linear(1, 1)
    assert wrap(model) == {"module": model, "device_ids": None}


def test_the_accelerator_refuses_other_devices_and_frees_memory(calls, monkeypatch):
    accelerator = XPUAccelerator()
    with pytest.raises(MisconfigurationException, match="an XPU, got cuda:0"):
        accelerator.setup_device(torch.device("cuda", 0))
    accelerator.teardown()
    assert calls == {"empty_cache": ((), {})}
    monkeypatch.setattr(torch.xpu, "memory_stats", lambda device: {"allocated_bytes.all.current": device.index})
    assert accelerator.get_device_stats(torch.device("xpu", 7)) == {"allocated_bytes.all.current": 7}


def test_a_seed_sets_the_generators_of_xpus(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.xpu, "manual_seed_all", seeds.append)
    torch.manual_seed(5)
    assert seeds == [5]
