"""Two processes on one NVIDIA GPU make the training of one."""

import os
import subprocess
import sys
from pathlib import Path

import one_card
import pytest
import torch


@pytest.mark.cuda
def test_two_processes_on_one_card_give_the_result_of_one(gpu, tmp_path):
    command = [sys.executable, one_card.__file__, gpu, str(tmp_path / "two")]
    helpers = str(Path(one_card.__file__).parent)
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": helpers}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    one_card.train(gpu, tmp_path / "one")
    two, one = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
        for name in ("two", "one")
    )
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5 if gpu == "cpu" else 1e-4)
