"""`ema.length` of `ddpm sample` and `ddpm evaluate`."""

import json

import numpy as np

TINY = ["data=mnist_mini", "model=unet_tiny", "model.channels=8", "schedule.num_steps=30", "data.batch_size=8"]


def test_samples_of_another_average(ddpm_here, tmp_path):
    done = ddpm_here(
        "train", *TINY, "callbacks=[default,ema_snapshots]", "callbacks.ema_snapshots.every_steps=1", "trainer=cpu",
        "trainer.max_steps=3", "callbacks.pictures=null", "optimizer.warmup_steps=0", "optimizer.lr=0.01",
        "name=averaged",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("outputs/train/*/averaged")
    sample = ("sample", f"ckpt={run}", "trainer=cpu", "num_samples=2", "sampler.steps=2")
    pictures = {}
    for length in ("null", 0.05, 0.2):
        done = ddpm_here(*sample, f"ema.length={length}")
        assert done.returncode == 0, done.stderr
        assert ("Moving average of the weights with length" in done.stdout) == (length != "null")
        pictures[length] = max(tmp_path.glob("outputs/sample/**/*.npz"), key=lambda path: path.stat().st_mtime_ns)
    arrays = [np.load(path)["images"] for path in pictures.values()]
    assert len({array.tobytes() for array in arrays}) == 3

    evaluate = ("evaluate", f"ckpt={run}", "trainer=cpu", "num_samples=0", "num_images=1", "evaluate.train_images=0",
                "evaluate.empirical_images=0", "evaluate.x0_mse_draws=4")  # fmt: skip
    done = ddpm_here(*evaluate, "ema.length=0.1")
    assert done.returncode == 0, done.stderr
    (metrics,) = tmp_path.glob("outputs/evaluate/**/metrics.json")
    assert json.loads(metrics.read_text())["weights"] == "EMA of length 0.1"
    assert not list(run.glob("checkpoints/*.x0_mse.json"))

    assert ddpm_here("export", f"ckpt={run}", "ema.length=0.05", "to=short").returncode == 0
    exported = ("sample", "ckpt=short", *sample[2:])
    assert ddpm_here(*exported).returncode == 0
    (path,) = tmp_path.glob("outputs/sample/short/**/*.npz")
    assert np.array_equal(np.load(path)["images"], arrays[1])
    card = (tmp_path / "short" / "README.md").read_text()
    assert "EMA of length 0.05" in card
    assert "Not evaluated" in card  # the evaluation above is of another average
    refused = ddpm_here("export", "ckpt=short", "ema.length=0.05", "to=again")
    assert "ema.length needs snapshots" in refused.stderr

    for word, said in (("ema.length=0.5", "between 0.01 and 0.25"), ("variance=optimal", "ema.length")):
        done = ddpm_here(*sample, "ema.length=0.1", word)
        assert done.returncode == 1
        assert said in done.stderr
