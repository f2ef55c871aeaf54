"""Mistakes in YAML files of one's own and in settings of Hydra give a line or two, without a traceback."""

import pytest

TINY = ["data=mnist_mini", "model=unet_tiny", "trainer=cpu", "dry_run=true"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"optimizer:\n\tlr: 1\n", ["mine.yaml, line 3", "'\\t'"]),
        (b"seed: 1\nseed: 2\n", ["mine.yaml, line 3", "duplicate key seed"]),
        (b"name: caf\xe9\n", ["not UTF-8"]),
        (b"defaults:\n  - mine\n", ["includes itself"]),
        (b"seed: !!python/name:os.system\n", ["mine.yaml, line 2"]),
        (b"1: 2\n", ["1 is read by nothing"]),
        (b"seed: ${eval:1}\n", ["seed: Unsupported interpolation type eval"]),
    ],
)
def test_a_file_of_ones_own(ddpm_here, tmp_path, text, words):
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/mine.yaml").write_bytes(b"# @package _global_\n" + text)
    refused(ddpm_here("train", *TINY, "--config-dir=own", "experiment=mine"), words)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hydra.verbose=7"], ["Hydra refuses a setting below hydra"]),
        (["~hydra"], ["~hydra: each command has its own settings"]),
        (["name=.."], ["name=.. must be text that matches"]),
        (["-m", "seed=range(0,0)"], ["seed=range(0,0): a range or a glob gives no value"]),
        (["-m", "model=glob(zzz)"], ["gives no value"]),
        (["hydra.mode=foo"], ["hydra.mode=foo", "[RUN, MULTIRUN]"]),
        (["~seed"], ["'seed' not found"]),
        (["optimizer.lr=0"], ["optimizer.lr=0 must be above 0"]),
        (["model.blocks=100000"], ["model: a network of more than 20,000 modules"]),
        (["model.channels=100000"], ["model: a network of", "GiB"]),
        (["data.num_workers=100000"], ["num_workers=100000 is too many"]),
        (["callbacks.pictures.num_samples=1000000000"], ["num_samples=1000000000", "at most 10,000"]),
    ],
)
def test_an_override(ddpm_here, overrides, words):
    refused(ddpm_here("train", *TINY, *overrides), words)


def test_an_option_that_replaces_one_that_does_not_exist(ddpm_here, tmp_path):
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: nothing\n", encoding="utf-8"
    )
    assert ddpm_here("train", "--config-dir", "own", "experiment=mine", *TINY).returncode == 0
    assert ddpm_here("train", *TINY, "hydra.searchpath=[file://own]", "experiment=mine").returncode == 0


def refused(answer, words):
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert len(answer.stderr.strip().splitlines()) <= 2, answer.stderr
    assert all(word in answer.stderr for word in words), answer.stderr


def test_too_large_for_other_commands(ddpm_here):
    refused(ddpm_here("sample", "ckpt=nowhere", "num_samples=1000000000"), ["at most 1000000"])
    refused(ddpm_here("denoise", "trainer=cpu", "schedule.num_steps=1000000000"), ["at most 1,000,000"])
