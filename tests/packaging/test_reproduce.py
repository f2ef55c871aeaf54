"""scripts/reproduce.py: a row is made, found the same, found different; the README shows the results."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from command_line import run_here
from hydra import compose, initialize_config_dir

from ddpm.config import conf_dir

ROOT = Path(__file__).parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


reproduce = load("reproduce")
ROWS = reproduce.read_rows()


def test_the_pages_show_the_results():
    texts = [page.read_text(encoding="utf-8") for page in reproduce.PAGES]
    made = reproduce.tables()
    for text in texts:
        assert text == reproduce.with_tables(text, made), "run scripts/reproduce --table"
    shown = [name for text in texts for name in re.findall(r"<!-- table (\w+) -->", text)]
    assert sorted(shown) == sorted(made)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_composes(name):
    row = ROWS[name]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for job in reproduce.jobs(row.train or []):
            compose("train", job)
        for overrides in row.evaluate:
            for job in reproduce.jobs(overrides):
                compose("evaluate", job)


TINY = reproduce.Row(
    table="results",
    train=shlex.split(
        "data=mnist_mini data.batch_size=8 model=unet_tiny model.channels=4 schedule=cosine schedule.num_steps=50 "
        "logger=none trainer.limit_val_batches=0 trainer.max_steps=2"
    ),
    evaluate=[
        shlex.split(
            "num_samples=0 num_images=20 timesteps_per_image=2 evaluate.train_images=0 evaluate.empirical_images=0 "
            "evaluate.x0_mse_draws=4"
        )
    ],
)


@pytest.mark.slow
def test_a_row_is_made_and_then_found_the_same_or_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "read_rows", lambda: {"tiny": TINY})
    trained = []

    def run(command):
        answer = run_here(*command[1:], cwd=tmp_path)
        trained.append("Training: " in answer.stdout)
        assert answer.returncode == 0, answer.stderr
        return answer.returncode

    to, outputs = tmp_path / "results" / "tiny.json", tmp_path / "outputs"
    assert reproduce.reproduce("tiny", [], to, outputs, run)
    assert trained == [True, False]
    first = json.loads(to.read_text())
    (line,) = first["lines"]
    assert line["settings"]["step"] == 2
    assert {"seconds", "images_per_second", "bpd/total"} <= line["numbers"].keys()
    assert line["made_with"]["processor"]["cores"] >= 1
    assert str(tmp_path) not in json.dumps(line)
    assert "`tiny`" in reproduce.tables(tmp_path / "results")["results"]

    with pytest.raises(reproduce.UserError, match="is at step 2, past the 1"):
        reproduce.reproduce("tiny", ["trainer.max_steps=1"], to, outputs, run)

    trained.clear()
    assert reproduce.reproduce("tiny", [], to, outputs, run)
    assert trained == [False, False]  # finished, so it is only evaluated
    number = line["numbers"]["bpd/total"]
    number["value"] += 3 * number["se"]
    capsys.readouterr()
    assert not reproduce.compare(first, json.loads((outputs / "reproduce" / "tiny.json").read_text()))
    assert " no " in capsys.readouterr().out


def test_the_error_over_seeds_includes_their_spread():
    number = reproduce.combined([1.0, 3.0], [0.0, 0.0])
    assert (number["value"], number["se"]) == (2.0, 1.0)  # two values 1 from their mean: the error of the mean is 1
    number = reproduce.combined([0.5, 0.5], [0.1, 0.1])  # one measurement, made twice
    assert number["se"] == pytest.approx(0.1)
    assert reproduce.combined([5.0], [None])["se"] is None


def test_two_results_agree_within_two_combined_errors():
    def results(value, **settings):
        number = {"value": value, "se": 0.3, "runs": [value]}
        line = {"name": "", "settings": {"step": 1, **settings}, "numbers": {"bpd/total": number}}
        return {"lines": [line]}

    assert reproduce.compare(results(1.0), results(1.8))  # 2 · 0.3 · √2 = 0.849
    assert not reproduce.compare(results(1.0), results(1.9))
    assert not reproduce.compare(results(1.0), results(1.0, step=2))
    assert not reproduce.compare(results(1.0), {"lines": []})


def test_the_shares_of_the_classes_are_compared_with_those_of_real_images():
    share, real = "quality/class_share_", "quality/class_share_{}_real"
    metrics = {"quality/n": 100, f"{share}0": 0.4, f"{share}1": 0.6, real.format(0): 0.5, real.format(1): 0.5}
    assert reproduce.class_deviation(metrics) == pytest.approx((0.1, (0.24 / 100) ** 0.5))
    assert reproduce.class_deviation({}) is None


def test_the_speedrun_counts_the_seconds_to_multiples_of_the_floor():
    lines = [
        {"numbers": {"quality/fd_test_ratio": {"value": ratio, "se": 0.1}, "seconds": {"value": seconds, "se": None}}}
        for ratio, seconds in [(20.0, 10.0), (9.0, 20.0), (4.0, 30.0)]
    ]
    assert [reproduce.seconds_to(target, lines) for target in (10, 5, 3)] == [20.0, 30.0, None]
    assert "| `mine` | 20 s | 30 s | not reached |" in "\n".join(reproduce.speedrun_table({"mine": {"lines": lines}}))


@pytest.mark.parametrize("library", ["denoising-diffusion-pytorch", "diffusers"])
def test_another_library_trains_and_samples(library):
    pytest.importorskip(library.replace("-", "_"))
    peers = load("peers")
    peer = peers.PEERS[library](steps=2, batch=2, lr=1e-4)
    before = [weight.clone() for weight in peer.weights]
    images = torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8)
    for _ in range(2):  # in the first step of a warm-up, the learning rate is 0
        steps, _ = peers.train(peer, images, minutes=0.0001)
        assert steps >= 1
    assert any(not torch.equal(*pair) for pair in zip(before, peer.weights, strict=True))
    with torch.no_grad():
        samples = peer.sample(2)
    assert samples.shape == (2, 1, 28, 28)
    assert samples.abs().max() <= 1
