"""scripts/benchmark.py: each command on a tiny network. The numbers of a busy machine are not checked."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from ddpm.models import UNet

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"
TINY = ["model=unet_tiny", "model.channels=4", "trainer.precision=32-true"]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)  # for the processes that it starts
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "MATMUL", {"cpu": 64})
    return module


def results(benchmark, folder: Path, *arguments: str) -> dict[str, dict]:
    benchmark.main([*arguments, "--rounds=2", "--seconds=0.001", "--batch=4", f"--out={folder}"])
    written = json.loads((folder / f"{arguments[0]}.json").read_text())
    assert {"command", "versions", "device", "processor", "threads"} <= written.keys()
    return {row["name"]: row for row in written["results"]}


def test_a_step_and_the_loop_are_compared_with_the_operations_of_the_network(benchmark, tmp_path, capsys):
    rows = results(benchmark, tmp_path, "step", *TINY)
    assert list(rows) == [
        "ddpm train",
        "bare step",
        "its operations, contiguous",
        "its operations, channels_last",
        "matmul 64 × 64, float32",
    ]
    assert all("share_of_roofline" in row for row in rows.values())
    assert "bare step" in capsys.readouterr().out


def test_the_batch_and_the_device_have_options_of_their_own(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["step", "data.batch_size=64"])
    assert "data.batch_size is set by --batch" in capsys.readouterr().err


def test_a_forward_pass_and_a_chain_are_compared_with_the_operations_of_the_network(benchmark, tmp_path):
    rows = results(benchmark, tmp_path, "sample", "--steps=2", *TINY)
    assert {"forward pass", "model.sample, 2 steps"} <= rows.keys()


def test_the_operations_are_those_of_the_network_forward_and_backward(benchmark):
    network = UNet(channels=8, blocks=1)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0, 5])
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        network(x, t).sum().backward()
    with benchmark.Operations() as operations:
        network(x, t).sum().backward()
    for layout in benchmark.LAYOUTS.values():
        case = operations.replay("name", layout, torch.device("cpu"), 2)
        assert case.flops == counter.get_total_flops() > 0


def test_input_is_compared_with_bare_indexing(benchmark, tmp_path):
    rows = results(benchmark, tmp_path, "input", *TINY)
    assert all(row["images_per_second"]["median"] > 0 for row in rows.values())
    assert len(rows) == 3


@pytest.mark.slow
def test_start_up_and_a_folder_of_pictures_are_timed_in_processes_of_their_own(benchmark, tmp_path):
    rows = results(benchmark, tmp_path, "scale", "--pictures=60")
    assert len(rows) == 4
    rows = results(benchmark, tmp_path, "startup", "--rounds=1")
    assert rows["first step of ddpm train"]["seconds"]["median"] > rows["ddpm"]["seconds"]["median"]
