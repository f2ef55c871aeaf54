import ast
import sys
from pathlib import Path

import pytest

from ddpm import devices
from ddpm.devices import lightning_arguments


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({}, "cpu"),
        ({"mps": True}, "mps"),
        ({"xpu": 1}, "xpu"),
        ({"xpu": 1, "mps": True}, "xpu"),
        ({"cuda": 1}, "cuda"),
        ({"cuda": 1, "mps": True}, "cuda"),
        ({"cuda": 1, "xpu": 1}, "cuda"),
        ({"cuda": 1, "xpu": 1, "mps": True}, "cuda"),
    ],
)
def test_auto_prefers_cuda_then_xpu_then_mps_then_cpu(machine, there, taken):
    machine(**there)
    assert lightning_arguments()["accelerator"] == taken
    if taken != "cpu":
        assert lightning_arguments("gpu")["accelerator"] == taken
    assert lightning_arguments("cpu")["accelerator"] == "cpu"


@pytest.mark.parametrize(
    ("devices", "num_nodes", "strategy"),
    [
        (1, 1, "single_xpu"),
        ("1", 1, "single_xpu"),
        ([1], 1, "single_xpu"),
        (2, 1, "ddp_xpu"),
        (-1, 1, "ddp_xpu"),
        ("auto", 1, "ddp_xpu"),
        ("0,1", 1, "ddp_xpu"),
        ([1, 0], 1, "ddp_xpu"),
        (1, 2, "ddp_xpu"),
    ],
)
def test_xpus_have_their_own_strategies(machine, devices, num_nodes, strategy):
    machine(xpu=2)
    assert lightning_arguments("xpu", devices, num_nodes)["strategy"] == strategy


def test_other_devices_have_strategies_of_lightning(machine):
    machine(cuda=2)
    for accelerator in ("cuda", "cpu"):
        assert lightning_arguments(accelerator, 2)["strategy"] == "auto"
        assert lightning_arguments(accelerator, 2, strategy="ddp")["strategy"] == "ddp"


def test_ddp_by_name_is_that_of_the_device_even_in_one_process(machine):
    machine(xpu=1)
    assert lightning_arguments("xpu", strategy="ddp")["strategy"] == "ddp_xpu"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"accelerator": "cuda"}, ["accelerator=cuda is not available", "accelerator=auto"]),
        ({"accelerator": "mps"}, ["accelerator=mps is not available"]),
        ({"accelerator": "gpu"}, ["accelerator=gpu is not available"]),
        ({"accelerator": "xpu"}, ["accelerator=xpu is not available", "Intel's driver", "Get started"]),
        ({"accelerator": "abacus"}, ["accelerator=abacus is none of auto, gpu, cpu, cuda, mps", "xpu"]),
        ({"accelerator": "cpu", "devices": 0}, ["devices=0 does not fit accelerator=cpu", "processes"]),
        ({"accelerator": "cpu", "devices": [0, 1]}, ["devices=[0, 1] does not fit accelerator=cpu"]),
    ],
)
def test_a_missing_device_is_refused_in_one_line(machine, arguments, words):
    machine()
    with pytest.raises(ValueError, match="accelerator") as error:
        lightning_arguments(**arguments)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("accelerator", ["cuda", "xpu"])
@pytest.mark.parametrize("devices", [3, "3", [2], [0, 0], "0,2", 0, "0", [], -2, "two"])
def test_more_devices_than_the_machine_has_are_refused(machine, accelerator, devices):
    machine(cuda=2, xpu=2)
    with pytest.raises(ValueError, match=f"does not fit accelerator={accelerator}: this machine has 2"):
        lightning_arguments(accelerator, devices)


def test_devices_of_the_cpu_are_any_number_of_processes(machine):
    machine()
    assert lightning_arguments("cpu", 99)["devices"] == 99


@pytest.mark.parametrize("accelerator", ["cuda", "xpu", "cpu"])
def test_fsdp_is_the_same_on_every_device(machine, accelerator):
    machine(cuda=2, xpu=2)
    assert lightning_arguments(accelerator, 2, strategy="fsdp")["strategy"] == "fsdp2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "dp"}, "strategy=dp is none of auto, ddp, fsdp"),
        ({"accelerator": "cuda", "strategy": "fsdp", "precision": "16-mixed"}, "fsdp does not support precision"),
        ({"accelerator": "mps", "strategy": "ddp"}, "one device in one process"),
        ({"accelerator": "mps", "num_nodes": 2}, "one device in one process"),
    ],
)
def test_a_strategy_that_the_device_lacks_is_refused(machine, arguments, message):
    machine(cuda=1, mps=True)
    with pytest.raises(ValueError, match=message):
        lightning_arguments(**arguments)


def test_another_project_can_copy_the_folder():
    """It imports only the standard library, torch, Lightning and itself."""
    imported = set()
    for path in Path(devices.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level != 1:
                imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "lightning"}
