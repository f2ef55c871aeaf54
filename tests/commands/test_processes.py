"""Sampling and evaluation in two real processes give the numbers of one process."""

import json

import numpy as np
import pytest


@pytest.mark.slow
@pytest.mark.usefixtures("real_digits")
def test_samples_and_numbers_do_not_depend_on_the_processes(ddpm_cli, ddpm_here, tiny_run, tmp_path):
    sample = [
        "sample",
        f"ckpt={tiny_run}",
        "trainer=cpu",
        "num_samples=7",
        "batch_size=2",
        "sampler=ddim",
        "sampler.steps=5",
    ]
    evaluate = [
        "evaluate", f"ckpt={tiny_run}", "trainer=cpu", "num_images=10", "batch_size=3", "evaluate.train_images=10",
        "evaluate.empirical_images=4", "evaluate.x0_mse_draws=4", "num_samples=101", "sampler.steps=2",
        "data=mnist_mini",
    ]  # fmt: skip
    found = []
    for devices in (1, 2):
        for command in (sample, evaluate):
            done = (ddpm_here if devices == 1 else ddpm_cli)(*command, f"trainer.devices={devices}")
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("Results in") == 1
        (images,) = tmp_path.glob("outputs/sample/*/*/samples.npz")
        (metrics,) = tmp_path.glob("outputs/evaluate/*/*/metrics.json")
        found.append((np.load(images)["images"], json.loads(metrics.read_text())))
        images.unlink()
        metrics.unlink()

    (images, metrics), (shared_images, shared_metrics) = found
    assert np.abs(images.astype(int) - shared_images.astype(int)).max() <= 1  # the last bit may round to the other side
    numbers = {name: value for name, value in metrics.items() if name.startswith(("bpd", "quality"))}
    assert len(numbers) > 80
    for name, value in numbers.items():
        assert shared_metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
