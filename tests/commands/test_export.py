"""`ddpm export`, and what reads the folder: `ddpm.load` and `ckpt=`."""

import contextlib
import hashlib
import json
import math
import os
import shutil
from itertools import product
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import ddpm
from ddpm.commands.export import portable
from ddpm.errors import UserError
from ddpm.models import UNet
from ddpm.runs import checkpoints, load_checkpoint
from ddpm.runs.exported import CONFIG, FILES, SUMS, WEIGHTS


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory) -> Path:
    """The tiny run, exported."""
    from command_line import run_here

    folder = tmp_path_factory.mktemp("export")
    done = run_here("export", f"ckpt={tiny_run}", "to=digits", "license=mit", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["digits"]
    return folder / "digits"


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def same_weights(one, other) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_exported_model_is_the_average(exported, tiny_run):
    model, run = ddpm.load(exported), ddpm.load(tiny_run)
    assert same_weights(model.ema, run.ema)
    assert same_weights(model.network, run.ema.module)
    assert torch.equal(model.sample(2, steps=2, seed=0), run.sample(2, steps=2, seed=0))
    model.configure_optimizers()

    config = yaml.safe_load((exported / CONFIG).read_text())["model"]
    del config["_target_"]
    weights = safetensors.torch.load_file(exported / WEIGHTS)
    network = UNet(**config)  # without ddpm.load
    network.load_state_dict(
        {name.removeprefix("network."): value for name, value in weights.items() if name.startswith("network.")}
    )
    assert same_weights(network, run.ema.module)


def test_every_command_that_takes_a_checkpoint_takes_the_folder(exported, ddpm_here, tmp_path):
    done = ddpm_here("sample", f"ckpt={exported}", "num_samples=2", "sampler=ddim", "sampler.steps=2", "trainer=cpu")
    assert done.returncode == 0, done.stderr
    done = ddpm_here("export", f"ckpt={exported}", "to=again", "dtype=float16")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / WEIGHTS).stat().st_size < 0.6 * (exported / WEIGHTS).stat().st_size
    half, full = ddpm.load(tmp_path / "again").state_dict(), ddpm.load(exported).state_dict()
    for name, value in half.items():
        torch.testing.assert_close(value, full[name], rtol=1e-3, atol=1e-6)


def test_the_card_has_the_numbers_of_the_largest_and_newest_evaluations(tiny_run, ddpm_here, tmp_path):
    checkpoint = tiny_run / "checkpoints" / "last.ckpt"
    facts = {
        "checkpoint": str(checkpoint),
        "step": 2,
        "images": 100,
        "data": "MNISTMini /secret/place",
        "weights": "EMA",
    }
    found = {
        "older": {"bpd/total": 9.0, "bpd/total_se": 0.1, **facts},
        "larger": {"quality/fd": 20.0, "quality/fd_se": None, "samples_judged": 5000, "guidance_scale": 2.0, **facts},
        "newest": {"bpd/total": 4.25, "bpd/total_se": 0.125, "quality/fd": 30.0, "quality/fd_se": None, **facts},
        "no-numbers": {"bpd/total": math.nan, "bpd/total_se": 0.1, **facts, "images": 9000},
        "later-step": {"bpd/total": 1.0, "bpd/total_se": 0.1, **facts, "step": 3},
        "other-average": {"bpd/total": 3.0, "bpd/total_se": 0.1, **facts, "weights": "EMA of length 0.1"},
        "other": {"bpd/total": 2.0, "bpd/total_se": 0.1, **facts, "checkpoint": "elsewhere.ckpt"},
    }
    for time, (name, metrics) in enumerate(found.items()):
        path = tmp_path / "outputs" / "evaluate" / name / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(metrics))
        os.utime(path, (time, time))
    assert ddpm_here("export", f"ckpt={tiny_run}", "to=digits").returncode == 0
    card = (tmp_path / "digits" / "README.md").read_text()
    assert "| bpd/total | 4.25 | 0.12 |" in card
    assert "| quality/fd | 20 | – |" in card
    assert "quality/fd | 30" not in card
    assert "n = 5000: guidance_scale 2.0." in card
    assert "n = 100" in card
    assert "data=mnist_mini" in card
    assert "schedule.num_steps" in card or "diffusion.betas.num_steps=30" in card
    assert "None was stated" in card
    assert "/secret/place" not in card


def test_a_card_without_an_evaluation_says_so_and_names_no_folder_of_this_machine(exported, tiny_run):
    card, config = ((exported / name).read_text() for name in ("README.md", CONFIG))
    assert "Not evaluated." in card
    assert 'license: "mit"' in card
    for text in (card, config):
        assert str(tiny_run.parent) not in text
        assert os.environ.get("DDPM_DATA_DIR", str(Path.home())) not in text


@pytest.mark.parametrize("taken", ["file", "folder", "link", "."])
def test_nothing_is_overwritten(tiny_run, ddpm_here, tmp_path, taken):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    (tmp_path / "link").symlink_to("empty")
    done = ddpm_here("export", f"ckpt={tiny_run}", f"to={taken}", cwd=tmp_path / "empty" if taken == "." else tmp_path)
    assert done.returncode != 0
    assert "is there already" in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file", "folder", "link", "mine"]


def test_a_failed_export_leaves_nothing(tiny_run, ddpm_here, tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("ddpm.runs.exported.replace_file", full)
    done = ddpm_here("export", f"ckpt={tiny_run}", "to=new")
    assert "No space left on device" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_into_half_precision_are_refused(tiny_run, ddpm_here, tmp_path):
    checkpoint = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["ema.module.input.bias"][0] = 1e5
    torch.save(checkpoint, tmp_path / "large.ckpt")
    done = ddpm_here("export", "ckpt=large.ckpt", "to=new", "dtype=float16")
    assert "ema.module.input.bias has numbers that are too large for float16" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_model_of_the_package_has_a_name(exported, ddpm_here, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "PACKAGED", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint or run at mnist$"):
        ddpm.load("mnist")
    shutil.copytree(exported, tmp_path / "pretrained" / "digits")
    assert ddpm.load("digits").image_shape == (1, 28, 28)
    with pytest.raises(UserError, match="no model mnist in the package, which has digits"):
        ddpm.load("mnist")
    (tmp_path / "digits").mkdir()  # a folder of this name that holds no model
    done = ddpm_here("sample", "ckpt=digits", "num_samples=2", "sampler=ddim", "sampler.steps=2", "trainer=cpu")
    assert "ddpm evaluate ckpt=digits\n" in done.stdout


@pytest.mark.parametrize("name", checkpoints.packaged())
def test_each_model_of_the_package(name):
    weights = checkpoints.packaged()[name]
    assert weights.stat().st_size <= 4e6
    assert {path.name for path in weights.parent.iterdir()} >= set(FILES)
    model = ddpm.load(name)
    assert model.dtype == torch.float32
    assert model.sample(1, steps=1, seed=0).isfinite().all()


def test_an_export_names_no_folder_of_this_machine():
    data = {"root": "/home/me/pictures", "cache": "/home/me/data/image_folder"}
    config = portable({"data": data, "paths": {"data": "/home/me/data"}})
    assert config["data"] == {"root": "pictures", "cache": "data/image_folder"}
    loss = {"_target_": "mine", "teacher": "/home/me/other/best.ckpt", "weak": "/home/me/out/train/weak/base/last"}
    config = portable({"objective": {"loss": loss}, "paths": {"data": "/home/me/data", "outputs": "/home/me/out"}})
    assert config["objective"]["loss"] == loss | {"teacher": "best.ckpt", "weak": "outputs/train/weak/base/last"}


def test_a_model_of_the_hub(exported, tmp_path, monkeypatch):
    """From the cache of huggingface_hub, without a network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    repository, revision = tmp_path / "models--someone--digits", "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision).mkdir(parents=True)
    shutil.copytree(exported, repository / "blobs")
    for name in FILES:  # the cache holds links
        (repository / "snapshots" / revision / name).symlink_to(f"../../blobs/{name}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ddpm.load("hf://someone/digits").image_shape == (1, 28, 28)
    for name in ("hf://someone/other", "hf://digits", "hf://../..", "hf://a/b/c", "hf://"):
        with pytest.raises(UserError, match=r"cannot be downloaded|must be hf://"):
            ddpm.load(name)


# Folders of other people --------------------------------------------------------------------------------------------


def sign(folder: Path) -> None:
    """Write the checksums of the files, as a stranger can."""
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WEIGHTS, CONFIG)}
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))


BOMB = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ddpm.models.UNet", "os.system"),
        ("ddpm.models.UNet", "lightning.Trainer"),
        ("channels: 8", "channels: 16"),
        ("channels: 8", "channels: 4000000"),
        ("channels: 8", "channels: .nan"),
        ("channels: 8", "channels: ${oc.env:HOME}"),
        ("num_steps: 30", "num_steps: 200000000"),
        ("image_size: 28", "image_size: 300000"),
        ("seed: 0", BOMB),
        ("seed: 0", "seed: " + "[" * 5000),
        ("seed: 0", "seed: !!python/object/apply:os.system [true]"),
        ("seed: 0", "seed: 0\nx: " + "y" * 2**19),
    ],
)
def test_a_config_that_asks_for_another_model_is_refused(copy, old, new):
    text = (copy / CONFIG).read_text()
    assert old in text
    (copy / CONFIG).write_text(text.replace(old, new, 1))
    sign(copy)
    with pytest.raises(UserError) as error:
        ddpm.load(copy)
    assert len(str(error.value).splitlines()) <= 2


def changed_weights(copy: Path, change) -> None:
    with safetensors.safe_open(copy / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    weights = safetensors.torch.load_file(copy / WEIGHTS)
    weights, metadata = change(weights, metadata)
    safetensors.torch.save_file(weights, copy / WEIGHTS, metadata)


BIAS = "network.input.bias"


@pytest.mark.parametrize(
    "change",
    [
        lambda weights, facts: (weights, {}),
        lambda weights, facts: (weights, {"ddpm": "[]"}),
        lambda weights, facts: (weights, {"ddpm": "[" * 100_000}),
        lambda weights, facts: (weights, {"ddpm": '{"format": 1, "global_step": -1}'}),
        lambda weights, facts: (weights, {"ddpm": '{"format": 99, "global_step": 1}'}),
        lambda weights, facts: ({}, facts),
        lambda weights, facts: ({"a": weights[BIAS]}, facts),
        lambda weights, facts: ({**weights, "other": torch.zeros(3)}, facts),
        lambda weights, facts: ({**weights, BIAS: torch.zeros(9)}, facts),
        lambda weights, facts: ({**weights, BIAS: torch.zeros(8, dtype=torch.int32)}, facts),
        lambda weights, facts: ({**weights, BIAS: torch.zeros(8, dtype=torch.complex64)}, facts),
        lambda weights, facts: ({**weights, BIAS: torch.full((8,), torch.nan)}, facts),
        lambda weights, facts: ({**weights, BIAS: torch.zeros(8, 0)}, facts),
    ],
)
def test_weights_of_another_model_are_refused(copy, change):
    changed_weights(copy, change)
    sign(copy)
    with pytest.raises(UserError):
        ddpm.load(copy)


def test_files_that_are_no_files_are_refused(copy, tmp_path):
    too_long = (2**62).to_bytes(8, "little") + (copy / WEIGHTS).read_bytes()[8:]
    elsewhere = Path(shutil.copytree(copy, tmp_path / "elsewhere"))
    ways = [
        lambda path: None,
        lambda path: path.touch(),
        lambda path: path.write_bytes(too_long),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(elsewhere / path.name),
        lambda path: path.symlink_to(path.name),
    ]
    for number, (name, make) in enumerate(product((WEIGHTS, CONFIG, SUMS), ways)):
        folder = Path(shutil.copytree(copy, tmp_path / str(number)))
        (folder / name).unlink()
        make(folder / name)
        with pytest.raises(UserError):
            ddpm.load(folder)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_change_of_bytes_is_a_users_error_or_the_same_model(exported, tmp_path_factory, data):
    """With checksums that fit, as a stranger computes them, it may be another model."""
    folder = tmp_path_factory.getbasetemp() / "mutated"
    shutil.copytree(exported, folder, dirs_exist_ok=True)
    path = folder / data.draw(st.sampled_from(FILES))
    signed = data.draw(st.booleans()) and path.name in (WEIGHTS, CONFIG)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, min(len(content) - 1, 3000 if signed else 10**9)))
        content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=8))
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        if signed:
            sign(folder)
            ddpm.load(folder)
        else:
            changed, good = (load_checkpoint(path / WEIGHTS) for path in (folder, exported))
            torch.testing.assert_close(changed.pop("state_dict"), good.pop("state_dict"), rtol=0, atol=0)
            assert changed == good
