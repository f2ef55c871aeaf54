"""All measures on the embedded digits: 9,000 training images, and half of the 2,000 test images as samples."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.nn.functional import avg_pool2d

from ddpm.commands.evaluate.sample_quality import build_measures
from ddpm.config import conf_dir
from ddpm.data import MNISTMini, to_model_range
from ddpm.errors import UserError
from ddpm.metrics import plots
from ddpm.metrics.estimates import Estimate
from ddpm.metrics.features import Digits, check_features, features_of
from ddpm.metrics.measures import Comparison
from ddpm.metrics.quality import NUM_PAIRS, sample_quality

N = 1000
MEASURES = build_measures(OmegaConf.create({"all": OmegaConf.load(conf_dir() / "measures" / "default.yaml")}).all)


@pytest.fixture(scope="module")
def digits():
    data = MNISTMini()
    data.setup()
    return data


@pytest.fixture(scope="module")
def judge(digits, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    train, test = digits.split("train").images, digits.split("test").images[::2]

    def run(samples, **kwargs):
        return sample_quality(
            samples, train, test, **{"features": Digits(), "measures": MEASURES, "cache_dir": cache} | kwargs
        )

    return run


@pytest.fixture(scope="module")
def held_out(digits):
    """The output of an ideal generator: real digits that are in no other set."""
    return digits.split("test").images[1::2]


@pytest.fixture(scope="module")
def quality_of_held_out(judge, held_out):
    return judge(held_out)


def close(value, other, errors=4):
    return abs(value.mean - other.mean) <= errors * math.hypot(value.se, other.se)


def test_held_out_digits_are_as_good_as_the_real_ones(quality_of_held_out):
    measures = dict(quality_of_held_out.measures)
    for name, measure in measures.items():
        assert measure.value.se > 0, name
    # The held-out digits and the test digits have the same writers, the training digits of the floor have others.
    to_test = measures.pop("fd_test")
    assert to_test.value.mean < to_test.real.mean
    for name, measure in measures.items():
        assert close(measure.value, measure.real), name


def test_a_generator_that_copies_the_training_set_is_flagged(judge, digits, quality_of_held_out):
    train = digits.split("train").images
    quality = judge(train[::7][:N])
    for name in ("pixel_copies", "feature_copies"):
        copies, real, _ = quality.measures[name]
        assert copies.mean == 1
        assert real.mean < 0.03
        assert quality_of_held_out.measures[name].value.mean < 0.03
    for pairs in quality.pairs.values():
        assert pairs.distances.tolist() == [0] * NUM_PAIRS
        assert torch.equal(train[::7][pairs.samples], train[pairs.train])


def test_a_slightly_noisy_copy_is_flagged_too(judge, digits):
    train = digits.split("train").images[:N]
    noise = torch.randint(-10, 11, train.shape, generator=torch.Generator().manual_seed(0))
    quality = judge((train + noise).clamp(0, 255).byte())
    assert quality.measures["pixel_copies"].value.mean > 0.95


def test_a_generator_that_drops_a_digit_loses_coverage_and_recall(judge, digits, held_out, quality_of_held_out):
    images, labels = digits.split("test")
    quality = judge(torch.cat([held_out[labels[1::2] != 3], images[::2][labels[::2] != 3]])[:N])
    for name in ("coverage", "recall"):
        assert quality.measures[name].value.mean < quality_of_held_out.measures[name].value.mean - 0.04
    assert quality.measures["class_tv"].value.mean > 0.08
    assert quality.class_shares[3] < 0.01
    assert quality.measures["fd_train"].ratio.mean > 3


def test_the_worse_the_samples_the_larger_the_distance(judge, held_out, quality_of_held_out):
    blurred = avg_pool2d(held_out.float(), 3, stride=1, padding=1).round().byte()
    noise = torch.randint(256, held_out.shape, generator=torch.Generator().manual_seed(0)).byte()
    good, worse, worst = quality_of_held_out, judge(blurred), judge(noise)
    for name in ("fd_train", "fd_test", "kid"):
        values = [quality.measures[name].value.mean for quality in (good, worse, worst)]
        assert values[0] < values[1] / 2 < values[2] / 4, name
    assert worst.measures["precision"].value.mean < 0.01
    assert worst.measures["kid"].value.mean > 10 * worst.measures["kid"].value.se


def test_a_floor_compares_the_two_real_sets(digits, held_out, quality_of_held_out):
    train = avg_pool2d(digits.split("train").images[:N].float(), 3, stride=1, padding=1).byte()
    measures = sample_quality(held_out, train, digits.split("test").images[::2], Digits(), MEASURES).measures
    for name in ("fd_train", "fd_test", "kid"):
        assert measures[name].real.mean > 2 * quality_of_held_out.measures[name].real.mean, name
    assert measures["coverage"].real.mean < 0.8
    fd_test = quality_of_held_out.measures["fd_test"]
    assert fd_test.real.se < fd_test.value.se / 2  # nine parts of the training images


def test_the_order_of_the_samples_does_not_matter(judge, held_out, quality_of_held_out):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    shuffled = judge(held_out[order])
    assert shuffled.numbers() == quality_of_held_out.numbers()
    for space, pairs in shuffled.pairs.items():
        original = quality_of_held_out.pairs[space]
        assert torch.equal(order[pairs.samples], original.samples)
        assert torch.equal(pairs.train, original.train)


def test_the_order_of_the_real_images_and_the_cache_do_not_matter(digits, held_out):
    train, test = digits.split("train").images[:600], digits.split("test").images[:400]
    quality = sample_quality(held_out, train, test, Digits(), MEASURES)
    flipped = sample_quality(held_out, train.flip(0), test.flip(0), Digits(), MEASURES)
    assert quality.n == 400
    assert flipped.numbers() == quality.numbers()
    assert torch.equal(599 - flipped.pairs["pixels"].train, quality.pairs["pixels"].train)


def test_results_for_real_images_are_stored(digits, held_out, tmp_path):
    train, test = digits.split("train").images[:300], digits.split("test").images[:200]
    first = sample_quality(held_out[:200], train, test, Digits(), MEASURES, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 3
    again = sample_quality(held_out[:200], train, test, Digits(), MEASURES, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert again.numbers() == first.numbers()
    sample_quality(held_out[:200], torch.cat([train[1:], held_out[200:201]]), test, Digits(), MEASURES, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_numbers_are_flat_and_complete(quality_of_held_out):
    numbers = quality_of_held_out.numbers()
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers.values())
    for name in quality_of_held_out.captions:
        assert {name, f"{name}_se", f"{name}_real", f"{name}_real_se"} <= numbers.keys()
    assert numbers["fd_test_ratio"] == pytest.approx(numbers["fd_test"] / numbers["fd_test_real"])
    assert sum(numbers[f"class_share_{digit}"] for digit in range(10)) == pytest.approx(1)


class Brightness:
    name = "brightness"
    caption = "mean brightness"

    def __call__(self, samples, reference):
        assert len(samples) == len(reference.train_subset) == len(reference.test_subset) == 200
        return samples.images.float().mean()


def test_a_measure_of_the_users_own_is_one_of_the_measures(judge, held_out):
    stages = []
    quality = judge(held_out[:200], measures=[MEASURES[2], Brightness()], on_stage=stages.append)
    assert list(quality.measures) == list(quality.captions) == ["kid", "brightness"]
    numbers = quality.numbers()
    assert numbers["brightness"] == held_out[:200].float().mean()
    assert math.isnan(numbers["brightness_se"])
    assert stages[-2:] == [MEASURES[2].caption, "mean brightness"]


def test_a_measure_returns_a_number_or_an_estimate(judge, held_out):
    class Own:
        name = caption = "own"

        def __init__(self, answer):
            self.answer = answer

        def __call__(self, samples, reference):
            return self.answer

    estimate = Estimate(2.0, 0.5)
    assert judge(held_out[:100], measures=[Own(estimate)]).measures["own"].value == estimate
    for answer in (None, (1.0, 2.0), torch.ones(2), "many"):
        with pytest.raises(ValueError, match="the measure own failed"):
            judge(held_out[:100], measures=[Own(answer)])


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"x": {"_target_": "builtins.dict"}}, r"measures\.x is no measure"),
        ({"x": {"_target_": "builtins.int"}}, r"measures\.x is no measure"),
        ({"x": {"_target_": "nowhere.X"}}, "nowhere"),
        ({key: {"_target_": "ddpm.metrics.kernel.KernelDistance"} for key in "xy"}, "the same name, kid"),
        ({"x": {"_target_": "ddpm.metrics.classes.AsAsked", "num_classes": 10}}, "the same name, as_asked"),
    ],
)
def test_objects_that_are_no_measures_are_refused(nodes, message):
    with pytest.raises(UserError, match=message):
        build_measures(OmegaConf.create(nodes))


def test_features_are_floats_of_any_width_and_at_least_one():
    def features(dtype, width=2):
        return lambda images: images.flatten(1)[:, :width].to(dtype)

    check_features(features(torch.bfloat16), (1, 4, 4))
    assert features_of(features(torch.bfloat16), torch.ones(3, 1, 4, 4).byte()).features.dtype == torch.float32
    for refused in (features(torch.int64), features(torch.float32, width=0)):
        with pytest.raises(ValueError, match=r"floats .* are needed"):
            check_features(refused, (1, 4, 4))


def test_a_measure_that_is_null_is_left_out():
    assert build_measures(OmegaConf.create({"x": None, "kid": {"_target_": "ddpm.metrics.kernel.KernelDistance"}}))
    assert build_measures(None) == []


def test_ratio():
    ratio = Comparison(Estimate(6.0, 0.3), Estimate(2.0, 0.1)).ratio
    assert ratio == pytest.approx((3, 3 * math.hypot(0.05, 0.05)))
    assert math.isnan(Comparison(Estimate(6.0, 0.3), Estimate(0.0, 0.0)).ratio.mean)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (torch.zeros(200, 1, 32, 32).byte(), r"the samples are torch.uint8 \[200, 1, 32, 32\]: .* needs images like"),
        (torch.zeros(200, 3, 28, 28).byte(), r"the samples are torch.uint8 \[200, 3, 28, 28\]: .* needs images like"),
        (torch.zeros(200, 1, 28, 28), r"the samples are torch.float32 \[200, 1, 28, 28\]: .* needs images like"),
        (torch.zeros(99, 1, 28, 28).byte(), "only 99 samples: .* at least 100"),
    ],
    ids=["size", "colour", "float", "few"],
)
def test_other_images_are_refused(judge, samples, words):
    with pytest.raises(ValueError, match=words):
        judge(samples)


def test_pictures(digits, held_out, quality_of_held_out, tmp_path):
    train, pairs = digits.split("train").images, quality_of_held_out.pairs
    shown = {
        space: (to_model_range(held_out[found.samples]), to_model_range(train[found.train]), found.distances)
        for space, found in pairs.items()
    }
    figure = plots.closest_pairs(shown, {space: found.threshold for space, found in pairs.items()})
    images = [image.get_array() for axes in figure.axes for image in axes.images]
    assert len(images) == 2 * 2 * NUM_PAIRS
    assert (images[0] == held_out[pairs["pixels"].samples[0], 0].numpy()).all()
    assert (images[NUM_PAIRS] == train[pairs["pixels"].train[0], 0].numpy()).all()
    figure.savefig(tmp_path / "pairs.png")
    plots.class_shares(quality_of_held_out.class_shares, quality_of_held_out.real_class_shares).savefig(
        tmp_path / "classes.png"
    )
    for name in ("pairs.png", "classes.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 3
