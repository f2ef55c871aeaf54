"""Checkpoints and run directories of other people: a UserError, or what the file holds, in bounded memory."""

import contextlib
import copy
import io
import os
import resource
import zipfile
from pathlib import Path

import pytest
import torch
from hand_made import composed, make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from small import Shades, fit

from ddpm.errors import UserError
from ddpm.runs.checkpoints import check_archive, load_checkpoint
from ddpm.runs.collect import read_run
from ddpm.runs.files import read_yaml
from ddpm.runs.run import Run
from ddpm.runs.saved_config import check_same_config
from ddpm.runs.status import Status
from ddpm.training import build_model, load_model
from ddpm.training.checkpoint_io import RunCheckpointIO

MAX_GROWTH = 300 * 2**20
"""bytes by which the memory of the process may grow in one test, whatever the files ask for"""
SMALL = (
    "data=mnist_mini", "data.image_size=8", "model=unet_tiny", "model.channels=8", "model.multipliers=[1,2]",
    "model.attention=[]", "schedule=cosine", "schedule.num_steps=20",
)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint as plain data, and its file."""
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    config = OmegaConf.to_container(composed(*(key for key in SMALL if key != "data.image_size=8")), resolve=True)
    config["data"]["image_size"] = 8
    fit(build_model(config), 1, data=Shades()).save_checkpoint(path)
    load_model(path)
    return torch.load(path, weights_only=True), path


@pytest.fixture(autouse=True)
def bounded_memory(good):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_GROWTH


def laughs():
    values = ["x"] * 10
    for _ in range(9):
        values = [values] * 10
    return values


def cycle():
    values: list = []
    values.append(values)
    return values


def deep():
    values: list = []
    for _ in range(200):
        values = [values]
    return values


CHANGES = {
    "model.multipliers": [laughs(), cycle(), deep(), [1] * 100_000, [2**40, 2**40], "x", None, {"a": 1}, [1.5]],
    "model.channels": [2000, 2**62, 10**30, float("nan"), -1, "???", "${oc.env:HOME}", True, {"_target_": "os.system"}],
    "model.blocks": [10**6, 10**12, "1", []],
    "model.attention": [[0] * 5000, [10**9]],
    "model.unknown": [1],
    "model": ["x", None, [], {}, {"_target_": {"a": "b"}}, {"_target_": "lightning.Trainer"}],
    "module": [None, {"_target_": "lightning.Trainer"}, {"_target_": "ddpm.training.callbacks.SamplePictures"}],
    "diffusion": [None, {"_target_": "ddpm.models.UNet"}],
    "diffusion._partial_": [True],
    "diffusion.betas": [[0.1, 0.2], None, laughs(), "x"],
    "diffusion.betas.num_steps": [2 * 10**8, 10**12, -1, 0, 1.5, None],
    "diffusion.betas._args_": [[2 * 10**8]],
    "data.image_size": [30_000, 10**6, -4, 0, [28, 28, 28], "8", None, [10**6, 10**6], laughs()],
    "data.image_channels": [3, 10**9, -1, None],
    "ema": [None, {"decay": 2}, {"decay": "x"}],
}


def changed(config, key, value):
    node = config
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value


@pytest.mark.parametrize("key", CHANGES)
def test_a_config_that_asks_for_another_model_is_refused(good, tmp_path, key):
    for value in CHANGES[key]:
        config = copy.deepcopy(good[0]["hyper_parameters"]["config"])
        changed(config, key, value)
        torch.save(good[0] | {"hyper_parameters": {"config": config}}, tmp_path / "bad.ckpt")
        with pytest.raises(UserError) as error:
            load_model(tmp_path / "bad.ckpt")
        assert str(error.value).count("\n") <= 2
        assert len(str(error.value)) < 1000


def test_weights_that_are_larger_than_the_file_are_refused(good, tmp_path):
    weight = "network.input.weight"
    for tensor in (torch.zeros(1).expand(10**6, 10**6), torch.zeros((10**6, 10**6), device="meta"), [1], 3):
        torch.save(good[0] | {"state_dict": good[0]["state_dict"] | {weight: tensor}}, tmp_path / "bad.ckpt")
        with pytest.raises(UserError):
            load_model(tmp_path / "bad.ckpt")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_change_of_bytes_is_a_users_error_or_harmless(good, tmp_path_factory, data):
    """Also with checksums that fit: a stranger computes them."""
    content = bytearray(good[1].read_bytes())
    path = tmp_path_factory.getbasetemp() / "mutated.ckpt"
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(
            st.integers(0, len(content) - 1) | st.integers(0, 3000) | st.integers(1, 3000).map(lambda n: -n)
        )
        content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=8))
    path.write_bytes(content)
    for read in (check_archive, load_model):
        with contextlib.suppress(UserError):
            read(path)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_pickle_is_a_users_error_or_harmless(good, tmp_path_factory, data):
    """Change the pickle, and write an archive with right checksums around it."""
    path = tmp_path_factory.getbasetemp() / "repacked.ckpt"
    buffer = io.BytesIO()
    torch.save(
        {"format": 1, "state_dict": {"a": torch.zeros(4)}, "hyper_parameters": {"config": {"model": [1]}}}, buffer
    )
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(path, "w") as repacked:
        for record in archive.infolist():
            content = bytearray(archive.read(record))
            if record.filename.endswith("data.pkl"):
                for _ in range(data.draw(st.integers(1, 3))):
                    place = data.draw(st.integers(0, len(content)))
                    content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
            repacked.writestr(record.filename, bytes(content))
    with contextlib.suppress(UserError):
        load_checkpoint(path)


LAUGHS = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))
FILES = {
    "status.json": ["[1]", "3", "{", '{"state": NaN}', '{"step": 1e999}', "[" * 100_000, "1" * 10**6,
                    '{"state": "running", "step": "7", "host": [1], "pid": {}}',
                    '{"seconds": -1e308, "error": {"a": 1}}'],
    "metrics.json": ['{"val/bpd": "low"}', '{"val/bpd": 1' + "0" * 400 + "}", '{"val/bpd": [[[]]]}', '{"step": null}'],
    "config.yaml": [LAUGHS, "[" * 20_000, "paths: 3", "paths: {data: [1]}\nnot_identity: 5", "a: 0x" + "f" * 10**5,
                    "? [1]\n: 2",
                    "a: 2020-01-01", "paths: {}\nseed: .nan", "a: &a [*a]", "<<: 3", "a: !!binary x", "a" * 10**6],
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_run_that_are_damaged_are_named(tmp_path, name):
    run = make_run(tmp_path / "run")
    for content in FILES[name]:
        (run / name).write_text(content)
        read_run(run)
        Status.read(run)
        Run.read(run).read_metrics()
        if name == "config.yaml":
            read_yaml(run / name)
            with pytest.raises(UserError):
                check_same_config(run, {"seed": 0}, [])


def test_a_pipe_is_not_read(tmp_path):
    run = make_run(tmp_path / "run")
    for name in FILES:
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    assert read_run(run).state == "unreadable"
    with pytest.raises(UserError):
        check_archive(run / "status.json")


@pytest.mark.parametrize("name", ["log.txt", "metrics.json", "checkpoints", "samples", "tensorboard"])
def test_a_link_out_of_a_run_is_not_written_through(tmp_path, name):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link that leads out"), Run.open(run):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_callback_removes_only_checkpoints_of_the_run(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    run = Run.read(tmp_path / "run")
    paths = [run.checkpoints / name for name in ("best.ckpt", "last.ckpt", "notes.txt")] + [tmp_path / "other.ckpt"]
    for path in paths:
        path.touch()
    for path in (*paths, run.checkpoints, run.checkpoints / "..", run.checkpoints / "../../other.ckpt", Path("/x/..")):
        RunCheckpointIO(run).remove_checkpoint(path)
    assert [path.exists() for path in paths] == [False, True, True, True]
