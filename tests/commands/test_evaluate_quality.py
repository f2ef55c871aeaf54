"""The sample quality part of `ddpm evaluate`: samples of the tiny model, and real digits."""

import csv
import json

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from small import Shades
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from ddpm.commands.evaluate.entry import mnist
from ddpm.commands.evaluate.sample_quality import check_data
from ddpm.config import build, conf_dir
from ddpm.data import MNIST, MNISTMini
from ddpm.errors import UserError

QUALITY = ["trainer=cpu", "num_images=0", "num_samples=100"]


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """Real digits that no model of mnist_mini was trained on, uint8 [300, 1, 28, 28]."""
    data = MNISTMini(batch_size=1, validation_size=1000)
    data.setup()
    return data.split("test").images[::6][:300].numpy()


@pytest.mark.usefixtures("real_digits")
def test_samples_of_a_checkpoint_are_compared_with_real_digits(ddpm_here, tiny_run, tmp_path):
    answer = ddpm_here("evaluate", f"ckpt={tiny_run}", *QUALITY, "sampler.steps=3")
    assert answer.returncode == 0, answer.stderr
    assert "Sample quality: 100 samples" in answer.stdout
    assert "Variational bound" not in answer.stdout
    (metrics_file,) = tmp_path.glob("outputs/evaluate/tiny/*/metrics.json")
    metrics = json.loads(metrics_file.read_text())
    assert metrics["quality/fd_test"] > 5 * metrics["quality/fd_test_real"] > 0  # two steps of training make no digits
    assert metrics["quality/fd_test_ratio"] == pytest.approx(
        metrics["quality/fd_test"] / metrics["quality/fd_test_real"]
    )
    assert metrics.items() >= {"sampler": "sde_dpm_solver", "network_evaluations": 3, "samples_judged": 100}.items()
    for name in ("samples", "closest", "classes"):
        with Image.open(metrics_file.with_name(f"{name}.png")) as picture:
            assert picture.convert("L").getextrema()[1] > 0
    events = EventAccumulator(str(metrics_file.parent)).Reload()
    assert events.Scalars("evaluate/quality/fd_test")[0].value == pytest.approx(metrics["quality/fd_test"])
    assert {"evaluate/samples", "evaluate/closest"} <= set(events.Tags()["images"])


@pytest.mark.usefixtures("real_digits")
def test_given_digits_with_an_own_measure_from_one_class_and_one_yaml(ddpm_here, tmp_path, digits):
    np.savez(tmp_path / "digits.npz", digits)
    (tmp_path / "mine.py").write_text(
        "class Brightness:\n"
        "    name = 'brightness'\n"
        "    caption = 'mean of all pixels'\n"
        "    def __call__(self, samples, reference):\n"
        "        return samples.images.float().mean() - reference.test.images.float().mean()\n"
    )
    (tmp_path / "conf" / "measures").mkdir(parents=True)
    (tmp_path / "conf" / "measures" / "mine.yaml").write_text(
        "defaults: [default, _self_]\nkid: null\nbrightness: {_target_: mine.Brightness}\n"
    )
    answer = ddpm_here(
        "evaluate", "--config-dir", "conf", "measures=mine", "samples=digits.npz", "data=mnist_mini",
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "mean of all pixels" in answer.stdout
    assert "KID" not in answer.stdout
    (metrics_file,) = tmp_path.glob("outputs/evaluate/default/*/metrics.json")
    metrics = json.loads(metrics_file.read_text())
    assert metrics["samples_judged"] == 300
    assert 0.5 < metrics["quality/fd_train_ratio"] < 2  # the digits are real
    assert metrics["quality/confidence"] > 0.98
    assert abs(metrics["quality/brightness"]) < 5
    assert metrics["quality/brightness_se"] is None
    assert "quality/kid" not in metrics
    events = EventAccumulator(str(metrics_file.parent)).Reload()
    assert events.Scalars("evaluate/quality/brightness")[0].value == pytest.approx(metrics["quality/brightness"])


@pytest.mark.usefixtures("real_digits")
@pytest.mark.slow
def test_a_sweep_ends_with_one_table_and_one_picture_of_all_samplers(ddpm_here, tiny_run, tmp_path):
    for sampler in (["sampler=ancestral"], ["sampler=ddim", "sampler.steps=2"]):
        done = ddpm_here("evaluate", f"ckpt={tiny_run}", *QUALITY, *sampler)
        assert done.returncode == 0, done.stderr
    answer = ddpm_here("evaluate", f"ckpt={tiny_run}", *QUALITY, "sampler=sde_dpm_solver", "sampler.steps=3", "-m")
    assert answer.returncode == 0, answer.stderr
    assert "Quality against cost" in answer.stdout
    folder = tmp_path / "outputs" / "evaluate" / "tiny"
    with (folder / "quality_cost.csv").open(newline="") as file:
        rows = [(row["sampler"], int(row["network_evaluations"])) for row in csv.DictReader(file)]
    # Earlier evaluations of this checkpoint are shown too.
    assert rows == [("ancestral", 30), ("ddim", 2), ("sde_dpm_solver", 3)]
    with Image.open(folder / "quality_cost.png") as picture:
        assert picture.width > 500


def test_given_samples_are_judged_beside_mnist_unless_data_is_set(tmp_path):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        data = build(mnist(compose("evaluate", [f"paths.data={tmp_path}", "seed=3"])))
    assert isinstance(data, MNIST)
    assert (data.root, data.seed) == (tmp_path, 3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "ddpm evaluate ckpt="),
        (["ckpt=a", "samples=b"], "ckpt and samples do not go together"),
        (["samples=a.npz", "num_samples=200"], "num_samples would make no difference"),
        (["samples=nothing.npz"], "there is no file or folder nothing.npz"),
        (["samples=.", "data=mnist_mini"], "there is no picture"),
        (["ckpt={run}", "num_samples=0", "num_images=0"], "nothing is left"),
    ],
)
def test_mistakes(ddpm_here, tiny_run, tmp_path, overrides, words):
    answer = ddpm_here("evaluate", *(word.format(run=tiny_run) for word in overrides))
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert words in answer.stderr
    assert list(tmp_path.rglob("metrics.json")) == []


def test_too_few_real_images_are_refused():
    with pytest.raises(UserError, match="there are only 40 train images: sample quality needs at least 100"):
        check_data(Shades().ready())


def test_an_image_folder_in_features_from_one_class_and_one_yaml(ddpm_here, train_tiny, tmp_path):
    """The whole table, less what needs a classifier, for colour images."""
    random = np.random.default_rng(0)
    for i in range(1200):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(random.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    data = ["data=image_folder", f"data.root={tmp_path}/pictures", "data.image_size=8", f"data.cache={tmp_path}/cache"]
    run = train_tiny(tmp_path / "run", *data)
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Colours(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.weight = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))\n"
        "    def forward(self, images):\n"
        "        assert not self.training\n"
        "        return torch.conv2d(images / 255, self.weight, stride=4).relu().flatten(1)\n"
    )
    (tmp_path / "conf" / "features").mkdir(parents=True)
    (tmp_path / "conf" / "features" / "mine.yaml").write_text("_target_: mine.Colours\n")
    mine = ["evaluate", "--config-dir", "conf", f"ckpt={run}", *data, *QUALITY, "sampler.steps=2"]
    answer = ddpm_here(*mine, "features=mine", env={"PYTHONPATH": str(tmp_path)})
    assert answer.returncode == 0, answer.stderr
    (metrics_file,) = tmp_path.glob("outputs/evaluate/*/*/metrics.json")
    numbers = json.loads(metrics_file.read_text())
    for name in ("fd_train", "fd_test", "kid", "sliced_wasserstein", "precision", "recall", "feature_copies"):
        assert numbers[f"quality/{name}_real"] is not None
    assert "quality/class_tv" not in numbers
    refused = ddpm_here(*mine, "features=digits", env={"PYTHONPATH": str(tmp_path)})
    assert refused.returncode == 1
    assert "they are made for grey images" in refused.stderr
