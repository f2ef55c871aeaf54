"""Out of memory: the real allocator under a limit of the address space."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

TOO_LARGE = 8192  # images
LIMIT = 9 * 2**30  # bytes of address space; one feature map of the batch has 1.6 GB
TRAIN = [
    "train", "data=mnist_mini", "model=unet_tiny", "model.channels=64", "schedule.num_steps=50", "trainer=cpu",
    "trainer.precision=32-true", "trainer.max_steps=1", "trainer.limit_val_batches=0", f"data.batch_size={TOO_LARGE}",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit does not hold")
def test_a_batch_that_is_too_large_fails_with_advice(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ddpm", *TRAIN],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )  # fmt: skip
    assert done.returncode == 1
    assert "out of memory on cpu" in done.stderr
    assert f"batches of {TOO_LARGE} images of 1×28×28 in 32-true" in done.stderr
    assert "Lower data.batch_size" in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = tmp_path.glob("outputs/train/default/*")
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["error"].startswith("out of memory")
