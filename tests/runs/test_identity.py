import json
import re
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from ddpm.config import conf_dir
from ddpm.runs.identity import (
    MAX_LENGTH,
    identity_overrides,
    overrides_with_effect,
    results_name,
    run_directory,
    run_name,
)

NOT_IDENTITY = ["paths", "logger", "trainer=", "trainer.devices", "trainer.max_steps", "restart"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "base"),
        (["schedule=cosine", "seed=1"], "schedule-cosine_seed-1"),
        (["model=unet_small", "seed=1"], "model-unet_small_seed-1"),
        (
            ["schedule.num_steps=10", "seed=1", "model=unet_small"],
            "model-unet_small_schedule.num_steps-10_seed-1",
        ),
        (["++optimizer.lr=1e-4"], "optimizer.lr-0.0001"),
        (["+extra=null", "model.attention=true"], "extra-null_model.attention-true"),
        (
            ["schedule=log_snr_linear", "schedule.log_snr_min=-5.0"],
            "schedule-log_snr_linear_schedule.log_snr_min--5.0",
        ),
        (
            ["restart=true", "paths.outputs=/tmp", "trainer.devices=2", "trainer.max_steps=9", "logger=none"],
            "base",
        ),
        (["experiment=mnist", "hydra.verbose=true", "hydra/launcher=basic"], "base"),
        (["trainer.max_steps_more=1", "loggers=2"], "loggers-2_trainer.max_steps_more-1"),
        (["trainer=cpu", "trainer.precision=32-true"], "trainer.precision-32-true"),
    ],
)
def test_run_name(overrides, name):
    assert run_name(overrides, NOT_IDENTITY) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a=1", "b=2"], ["b=2", "a=1"]),
        (["a=1", "a=2"], ["a=2"]),
        (["+a=1"], ["++a=1"]),
        (["a=1e-3"], ["a=0.001"]),
        (["a=[1, 2,  3]"], ["a=[1,2,3]"]),
        (["a='word'"], ["a=word"]),
        (["a=True"], ["a=true"]),
    ],
)
def test_spellings_of_one_run_share_a_name(one, other):
    assert run_name(one) == run_name(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a=1_b-2"], ["a=1", "b=2"]),
        (["a=1_num", "steps=5"], ["a=1", "num_steps=5"]),
        (["a=1"], ["a='1'"]),
        (["a=null"], ["a='null'"]),
        (["~a"], ["a='~'"]),
        (["~a"], ["a=null"]),
        (["a=x/y"], ["a=x-y"]),
        (["a=x/y"], ["a=x_y"]),
        (["a/b=c"], ["a.b=c"]),
        (["model@net=x"], ["model=x"]),
        (["a=''"], ["a=-"]),
        (["a=[1,2]"], ["a=[12]"]),
    ],
)
def test_two_runs_have_two_names(one, other):
    assert run_name(one) != run_name(other)


def test_a_name_cannot_imitate_a_digest():
    name = run_name(["a='x y'"])
    value = name.removeprefix("a-")
    assert run_name([f"a={value}"]) != name


def test_run_directory():
    assert run_directory("train", "outputs", ["seed=1"]) == Path("outputs/train/default/seed-1")
    assert run_directory("train", "out", ["experiment=mnist"], "mnist") == Path("out/train/mnist/base")
    assert run_directory("train", "out", [], "default") != run_directory("train", "out", [])
    assert run_directory("train", "out", [], "../x").parent.parent == Path("out/train")


keys = st.from_regex(r"[a-z][a-z_]{0,3}(\.[a-z][a-z_]{0,3}|(/[a-z][a-z_]{0,3}){1,2})?", fullmatch=True)
texts = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=150) | st.sampled_from(
    ["..", "../..", "/etc", ".hidden", "", "-", "_", "é", "1", "true", "null", "a_b-c", "~"]
)
values = texts | st.integers() | st.booleans() | st.lists(st.integers(), max_size=5)


def spell(items):
    """Return override strings, with texts in quotes as Hydra reads them."""
    return [f"{key}={_quoted(value) if isinstance(value, str) else json.dumps(value)}" for key, value in items.items()]


def _quoted(text):
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", text)
    return "'" + text.replace("'", "\\'") + "'"


@given(st.dictionaries(keys, values, max_size=3), st.dictionaries(keys, values, max_size=3))
def test_different_overrides_have_different_names(one, other):
    names = run_name(spell(one)), run_name(spell(other))
    assert (names[0] == names[1]) == ((one, list(map(type, one.values()))) == (other, list(map(type, other.values()))))


@given(st.dictionaries(keys, values, max_size=3), texts)
def test_a_directory_stays_below_outputs(items, experiment):
    directory = run_directory("train", "outputs", spell(items), experiment)
    assert directory.parts[:2] == ("outputs", "train")
    assert len(directory.parts) == 4
    for part in directory.parts[2:]:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", part)
        assert len(part) <= MAX_LENGTH < 120


@given(st.dictionaries(keys, values, max_size=3), st.randoms())
def test_order_and_repetition_make_no_difference(items, random):
    overrides = spell(items)
    shuffled = [*random.sample(overrides, len(overrides)), *overrides]
    assert run_name(shuffled) == run_name(overrides)
    assert identity_overrides(shuffled) == identity_overrides(overrides)


word_keys = st.from_regex(r"[a-c][a-c_]{0,2}(\.[a-c][a-c_]{0,2})?", fullmatch=True)
word_values = st.from_regex(r"[a-c_.-]{1,6}", fullmatch=True)
wordy = st.dictionaries(word_keys, word_values, min_size=1, max_size=3)


@given(st.lists(wordy, min_size=2, max_size=20, unique_by=lambda items: tuple(sorted(items.items()))))
def test_names_with_underscores_and_dashes_are_unique(many):
    names = {run_name(spell(items)) for items in many}
    assert len(names) == len(many)


def test_results_of_different_runs_do_not_share_a_directory(tmp_path):
    outputs = tmp_path / "outputs"
    inside = outputs / "train" / "quickstart" / "base"
    assert results_name([inside], outputs) == (Path("quickstart/base"), "")
    assert results_name([outputs / "train"], outputs) == (Path("train"), "")
    places = [[inside], [tmp_path / "a" / "base"], [tmp_path / "b" / "base"]]
    places += [[inside, other] for (other,) in places[1:]]
    assert len({results_name(place, outputs) for place in places}) == len(places)


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (["seed=0", "++ema.decay=0.999", "sampler.spacing='uniform'"], []),
        (["seed=0", "seed=1"], ["seed=1"]),
        (["seed=1", "seed=0"], []),
        (["trainer.limit_val_batches=1.0"], []),
        (["trainer.limit_val_batches=1"], ["trainer.limit_val_batches=1"]),  # one batch, not all
        (["model=unet_small", "objective/timesteps=uniform"], []),
        (["model=unet_tiny", "model.channels=16"], ["model=unet_tiny"]),
        (["model=unet_tiny", "model.channels=32"], ["model=unet_tiny", "model.channels=32"]),
        (["experiment=quickstart", "data=mnist_mini", "optimizer.lr=1e-2"], []),
        (["seed=1", "data.seed=0"], ["seed=1", "data.seed=0"]),
        (
            ["~callbacks.speed", "+extra=1", "callbacks.best=null"],
            ["~callbacks.speed", "+extra=1", "callbacks.best=null"],
        ),
    ],
)
def test_an_override_equal_to_the_default_is_dropped(overrides, kept):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        assert overrides_with_effect("train", overrides) == kept


def test_a_name_of_ones_own():
    assert run_directory("train", "out", ["seed=1"], "mnist", name="mine") == Path("out/train/mnist/mine")


def test_a_long_name_is_cut_to_the_limit_with_its_digest():
    name = run_name([f"optimizer.name_{'x' * 300}=1"])
    assert len(name) == 119
