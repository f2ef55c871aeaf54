"""Training in one, two and four real processes is the same training."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

TRAIN = [
    "train", "data=mnist_mini", "data.batch_size=32", "model=unet_tiny", "model.channels=8", "model.dropout=0",
    "schedule.num_steps=50", "trainer=cpu", "trainer.precision=32-true", "callbacks.pictures=null",
]  # fmt: skip

WITNESS = """
import lightning as L
import torch


class Witness(L.Callback):
    '''Writes what each rank sees in its first batch, and what it ends with.'''

    def on_train_start(self, trainer, model):
        def see(network, inputs):
            if network.training and not hasattr(self, "seen"):
                self.seen = inputs[0].clone()
        model.network.register_forward_pre_hook(see)

    def on_train_end(self, trainer, model):
        path = f"{trainer.default_root_dir}/rank-{trainer.global_rank}.pt"
        torch.save({"x_t": self.seen, "weights": model.state_dict()}, path)
"""


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("witness")
    (folder / "witness.py").write_text(WITNESS)
    return folder


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith(("train/", "val/"))]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


@pytest.mark.slow
def test_one_two_and_four_processes_are_the_same_training(ddpm_cli, witness, tmp_path):
    found = {}
    for devices in (1, 2, 4):
        folder = tmp_path / str(devices)
        folder.mkdir()
        done = ddpm_cli(
            *TRAIN, f"trainer.devices={devices}", "trainer.max_steps=12", "trainer.log_every_n_steps=1",
            "trainer.val_check_interval=6", "+callbacks.witness._target_=witness.Witness",
            cwd=folder, env={"PYTHONPATH": str(witness)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (run,) = folder.glob("outputs/train/default/*")
        ranks = [torch.load(run / f"rank-{rank}.pt", weights_only=True) for rank in range(devices)]
        for rank in ranks[1:]:  # the moving average is among them
            assert all(torch.equal(tensor, rank["weights"][name]) for name, tensor in ranks[0]["weights"].items())
        found[devices] = curves(run), torch.cat([rank["x_t"] for rank in ranks]), ranks[0]["weights"]

    alone, x_t, weights = found.pop(1)
    assert len(x_t.flatten(1).unique(dim=0)) == 32
    assert {"train/loss", "train/loss_q1", "train/grad_norm", "val/loss", "val/bpd"} <= alone.keys()
    assert len(alone["train/loss"]) == 12
    for shared, shared_x_t, shared_weights in found.values():
        assert torch.equal(shared_x_t, x_t)  # each rank has its part of the images and the noise
        assert shared.keys() == alone.keys()
        for name, points in alone.items():
            assert [step for step, _ in shared[name]] == [step for step, _ in points]
            assert [value for _, value in shared[name]] == pytest.approx([value for _, value in points], rel=1e-4), name
        for name, tensor in weights.items():
            assert torch.allclose(shared_weights[name], tensor, atol=1e-4), name


@pytest.mark.slow
def test_each_job_of_a_sweep_has_ranks_of_its_own(ddpm_cli, witness, tmp_path):
    done = ddpm_cli(
        *TRAIN, "-m", "trainer.devices=2", "trainer.max_steps=2", "trainer.limit_val_batches=0", "seed=0,1",
        "+callbacks.witness._target_=witness.Witness", env={"PYTHONPATH": str(witness)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Training: ") == 2
    found = []
    for run in tmp_path.glob("outputs/train/default/*"):
        first, second = (torch.load(run / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
        assert all(torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items())
        found += [first["x_t"], second["x_t"]]
    assert len(torch.stack(found).unique(dim=0)) == 4  # two seeds, of which each rank has its part


@pytest.mark.slow
def test_two_nodes_that_were_told_of_each_other_train_as_one_with_two_processes(ddpm_cli, tmp_path):
    together, apart = tmp_path / "together", tmp_path / "apart"
    for folder in (together, apart):
        folder.mkdir()
    few = [*TRAIN, "trainer.max_steps=4", "trainer.limit_val_batches=2", "trainer.val_check_interval=2"]
    assert ddpm_cli(*few, "trainer.devices=2", cwd=together).returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "ddpm", *few, "trainer.num_nodes=2"],
            cwd=apart, env=os.environ | address | {"NODE_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    messages = [node.communicate(timeout=240)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], messages
    one, other = (torch.load(next(f.rglob("last.ckpt")), weights_only=True)["state_dict"] for f in (together, apart))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ddpm", *TRAIN, "trainer.devices=2", "trainer.max_steps=100000"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [process.pid, *(int(pid) for pid in children if b"ddpm" in Path(f"/proc/{pid}/cmdline").read_bytes())]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks through /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_within_seconds(tmp_path, victim):
    process = start(tmp_path)
    while not list(tmp_path.glob("outputs/train/default/*/status.json")):
        assert process.poll() is None
        time.sleep(0.1)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    time.sleep(2)
    os.kill(ranks[victim], signal.SIGKILL)
    killed = time.monotonic()
    _, message = process.communicate(timeout=60)
    assert process.returncode != 0
    if victim == 1:
        assert "another process of this run has ended" in message
        assert "Traceback" not in message
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() - killed < 60  # 3 seconds, on a machine that does nothing else
        time.sleep(0.1)
