"""A machine whose memory is too small, by a limit of the system: the real error of the real allocator."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

TOO_LARGE, SMALL = 8192, 4  # images
LIMIT = 9 * 2**30  # bytes of address space: of the large batch, a single feature map has 1.6 GB
TRAIN = [
    "train", "-m", "data=mnist_mini", "model=unet_tiny", "model.channels=64", "schedule.num_steps=50", "trainer=cpu",
    "trainer.precision=32-true", "trainer.max_steps=1", "trainer.limit_val_batches=0",
]  # fmt: skip

WITNESS = """
import gc
import lightning as L
from ddpm.training.module import DDPM


class Witness(L.Callback):
    def on_train_start(self, trainer, model):
        print("models in memory:", sum(type(object) is DDPM for object in gc.get_objects()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit does not hold")
def test_a_job_that_is_too_large_says_so_and_leaves_the_memory_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "witness.py").write_text(WITNESS)
    done = subprocess.run(
        [sys.executable, "-m", "ddpm", *TRAIN, f"data.batch_size={TOO_LARGE},{SMALL}",
         "+callbacks.witness._target_=witness.Witness"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )  # fmt: skip
    assert done.returncode == 1
    assert "out of memory on cpu" in done.stderr
    assert f"batches of {TOO_LARGE} images of 1×28×28 in 32-true" in done.stderr
    assert "Lower data.batch_size" in done.stderr
    assert f"1 of 2 jobs failed: data.batch_size={TOO_LARGE}" in done.stderr
    assert done.stdout.count("models in memory: 1\n") == 2
    found = {
        json.loads((run / "status.json").read_text())["state"]: run for run in tmp_path.glob("outputs/train/default/*")
    }
    assert found.keys() == {"failed", "finished"}
    assert json.loads((found["failed"] / "status.json").read_text())["error"].startswith("out of memory")
