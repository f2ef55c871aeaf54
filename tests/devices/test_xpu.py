"""What Lightning makes of our XPUs, with `torch.xpu` pretended: devices, autocast, process group, DDP."""

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from ddpm.devices import lightning_arguments
from ddpm.devices.xpu import XPUAccelerator


@pytest.fixture(params=["Trainer", "Fabric"])
def strategy_of(request, machine):
    """The strategy that Trainer or Fabric has with these settings, on a machine with four XPUs."""
    machine(xpu=4)

    def build(devices, num_nodes=1, precision="auto"):
        arguments = lightning_arguments("xpu", devices, num_nodes, precision)
        if request.param == "Fabric":
            return L.Fabric(**arguments)._strategy
        return L.Trainer(**arguments, logger=False, enable_checkpointing=False).strategy

    return build


@pytest.fixture
def calls(monkeypatch):
    """What is asked of torch, by name, instead of doing it."""
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
def test_the_devices_that_were_asked_for(strategy_of, devices, num_nodes, first, processes):
    strategy = strategy_of(devices, num_nodes)
    assert isinstance(strategy.accelerator, XPUAccelerator)
    assert strategy.root_device == torch.device("xpu", first)
    assert strategy.world_size == processes


@pytest.mark.parametrize("devices", [1, 2])
def test_bfloat16_is_autocast_on_xpus(strategy_of, devices):
    strategy = strategy_of(devices)
    plugin = getattr(strategy, "precision_plugin", None) or strategy.precision
    assert (plugin.precision, plugin.device, plugin.scaler) == ("bf16-mixed", "xpu", None)


@pytest.mark.parametrize("devices", [1, 2])
def test_float32_is_plain(strategy_of, devices):
    strategy = strategy_of(devices, precision="32-true")
    plugin = getattr(strategy, "precision_plugin", None) or strategy.precision
    assert plugin.precision == "32-true"


def test_several_processes_talk_through_xccl_each_on_its_device(strategy_of, calls, monkeypatch):
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
    """If this fails, Lightning opens the stream under another condition than that of device ids."""
    for module in ("pytorch", "fabric"):
        monkeypatch.setattr(f"lightning.{module}.strategies.ddp.DistributedDataParallel", lambda **kwargs: kwargs)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: pytest.fail("there is no CUDA"))
    strategy = strategy_of([3, 1])
    wrap = getattr(strategy, "_setup_model", None) or strategy.setup_module
    model = torch.nn.Linear(1, 1)
    assert wrap(model) == {"module": model, "device_ids": None}


def test_the_accelerator_keeps_to_xpus_and_gives_their_memory_back(calls, monkeypatch):
    accelerator = XPUAccelerator()
    with pytest.raises(MisconfigurationException, match="an XPU, got cuda:0"):
        accelerator.setup_device(torch.device("cuda", 0))
    accelerator.teardown()
    assert calls == {"empty_cache": ((), {})}
    monkeypatch.setattr(torch.xpu, "memory_stats", lambda device: {"allocated_bytes.all.current": device.index})
    assert accelerator.get_device_stats(torch.device("xpu", 7)) == {"allocated_bytes.all.current": 7}


def test_a_seed_reaches_the_generators_of_xpus(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.xpu, "manual_seed_all", seeds.append)
    torch.manual_seed(5)
    assert seeds == [5]
