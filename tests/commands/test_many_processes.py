"""Training in one, two and four real processes is the same training."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

TRAIN = [
    "train", "data=mnist_mini", "data.batch_size=32", "model=unet_tiny", "model.channels=8",
    "schedule.num_steps=50", "trainer=cpu", "trainer.precision=32-true", "callbacks.pictures=null",
]  # fmt: skip

WITNESS = """
import lightning as L
import torch


class Witness(L.Callback):
    '''Writes each rank's first noisy batch, its labels, and its final weights.'''

    def on_train_start(self, trainer, model):
        def see(network, inputs, condition):
            if network.training and not hasattr(self, "seen"):
                self.seen = inputs[0].clone(), condition["labels"].clone()
        model.network.register_forward_pre_hook(see, with_kwargs=True)

    def on_train_end(self, trainer, model):
        path = f"{trainer.default_root_dir}/rank-{trainer.global_rank}.pt"
        x_t, labels = self.seen
        torch.save({"x_t": x_t, "labels": labels, "weights": model.state_dict()}, path)
"""


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("witness")
    (folder / "witness.py").write_text(WITNESS)
    return folder


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith(("train/", "val/", "watch/grad"))]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


@pytest.mark.slow
def test_one_process_two_nodes_and_four_processes_are_the_same_training(ddpm_cli, ddpm_here, witness, tmp_path):
    """Two nodes are two processes that know each other's address."""
    few = [
        *TRAIN, "model.num_classes=10", "trainer.max_steps=6", "trainer.log_every_n_steps=1",
        "trainer.val_check_interval=3", "trainer.limit_val_batches=2", "+callbacks.witness._target_=witness.Witness",
    ]  # fmt: skip
    folders = {processes: tmp_path / str(processes) for processes in (1, 2, 4)}
    for folder in folders.values():
        folder.mkdir()
    env = {"PYTHONPATH": str(witness)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "ddpm", *few, "trainer.num_nodes=2"], cwd=folders[2],
            env=os.environ | env | address | {"NODE_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    messages = [node.communicate(timeout=240)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], messages
    done = ddpm_cli(*few, "trainer.devices=4", cwd=folders[4], env=env)
    assert done.returncode == 0, done.stderr
    done = ddpm_here(*few, cwd=folders[1], env=env)
    assert done.returncode == 0, done.stderr

    found = {}
    for processes, folder in folders.items():
        (run,) = folder.glob("outputs/train/default/*")
        ranks = [torch.load(run / f"rank-{rank}.pt", weights_only=True) for rank in range(processes)]
        for rank in ranks[1:]:  # the EMA is among them
            assert all(torch.equal(tensor, rank["weights"][name]) for name, tensor in ranks[0]["weights"].items())
        x_t, labels = (torch.cat([rank[name] for rank in ranks]) for name in ("x_t", "labels"))
        found[processes] = curves(run), x_t, labels, ranks[0]["weights"]
    alone, x_t, labels, weights = found.pop(1)
    assert 10 in labels  # a label that was left out
    assert len(x_t.flatten(1).unique(dim=0)) == 32
    assert {"train/loss", "train/loss_q1", "watch/grad_norm", "val/loss", "val/bpd"} <= alone.keys()
    assert len(alone["train/loss"]) == 6
    for shared, shared_x_t, shared_labels, shared_weights in found.values():
        assert torch.equal(shared_x_t, x_t)  # each rank has its part of the images and of eps
        assert torch.equal(shared_labels, labels)
        assert shared.keys() == alone.keys()
        for name, points in alone.items():
            assert [step for step, _ in shared[name]] == [step for step, _ in points]
            assert [value for _, value in shared[name]] == pytest.approx([value for _, value in points], rel=1e-4), name
        for name, tensor in weights.items():
            assert torch.allclose(shared_weights[name], tensor, atol=1e-4), name


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks through /proc")
def test_rank_1_ends_within_seconds_after_a_kill_of_rank_0(tmp_path):
    """test_sweeps.py kills rank 1."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ddpm", *TRAIN, "trainer.devices=2", "trainer.max_steps=100000"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not list(tmp_path.glob("outputs/train/default/*/status.json")):
        assert process.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (rank_1,) = (Path(f"/proc/{pid}") for pid in children if b"ddpm" in Path(f"/proc/{pid}/cmdline").read_bytes())
    time.sleep(2)
    process.kill()
    process.wait()
    killed = time.monotonic()
    while rank_1.exists():
        assert time.monotonic() - killed < 60  # 3 seconds where nothing else runs
        time.sleep(0.1)
