from functools import cache

import pytest
from hand_made import make_run

from ddpm.runs.collect import read_run
from ddpm.runs.compare import varying_settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The settings of a run with some overrides, read from its directory."""
    folder = tmp_path_factory.mktemp("runs")

    @cache
    def of(overrides: str):
        return read_run(make_run(folder / (overrides or "base"), *overrides.split())).settings

    return of


@pytest.mark.parametrize(
    ("overrides", "columns"),
    [
        (["", ""], {}),
        (["seed=0", "seed=1"], {"seed": [0, 1]}),
        (["schedule=linear", "schedule=cosine"], {"schedule": ["linear", "cosine"]}),
        (
            ["schedule=linear", "schedule=cosine", "schedule=sigmoid", "schedule=sigmoid"],
            {"schedule": ["linear", "cosine", "sigmoid", "sigmoid"]},
        ),
        (["objective=simple", "objective=min_snr"], {"objective.loss": ["Simple", "MinSNR"]}),
        (
            ["objective=min_snr", "objective=min_snr objective.loss.gamma=2", "objective=vlb"],
            {"objective.loss": ["MinSNR gamma=5", "MinSNR gamma=2", "VLB"]},
        ),
        (["objective.prediction=v", "objective.prediction=x0"], {"objective.prediction": ["v", "x0"]}),
        (["optimizer.lr=1e-3", "optimizer.lr=1e-4"], {"optimizer.lr": [1e-3, 1e-4]}),
        (["sampler.steps=5", "sampler.steps=6"], {"sampler.steps": [5, 6]}),
        (["data=mnist", "data=fashion_mnist"], {"data": ["mnist", "fashion_mnist"]}),
        (
            ["model=unet_tiny", "model=unet_small", "model=unet_tiny"],
            {
                "model": [
                    "channels=16 multipliers=[1,2,4] blocks=1",
                    "channels=32 multipliers=[1,2,2] blocks=2",
                    "channels=16 multipliers=[1,2,4] blocks=1",
                ]
            },
        ),
        (
            ["sampler=ddim", "sampler=dpm_solver"],
            {"sampler": ["ddim steps=50 spacing=uniform", "dpm_solver steps=20 spacing=karras"]},
        ),
        (["init_from=null", "init_from=a.ckpt"], {"init_from": ["null", "a.ckpt"]}),
    ],
)
def test_one_override_is_one_column(settings, overrides, columns):
    assert varying_settings([settings(words) for words in overrides]) == columns


def test_a_grid_has_a_column_for_each_of_its_keys(settings):
    overrides = [
        f"schedule={schedule} schedule.num_steps={steps} model.channels={channels}"
        for schedule in ("linear", "cosine")
        for steps in (50, 100)
        for channels in (8, 16)
    ]
    columns = varying_settings([settings(words) for words in overrides])
    assert columns == {
        "schedule": ["linear"] * 4 + ["cosine"] * 4,
        "schedule.num_steps": [50, 50, 100, 100] * 2,
        "model.channels": [8, 16] * 4,
    }


def test_settings_that_change_together_are_all_shown(settings):
    """The number of steps changes together with the schedule."""
    overrides = ["schedule=linear schedule.num_steps=50", "schedule=cosine schedule.num_steps=100"]
    columns = varying_settings([settings(words) for words in overrides])
    assert columns == {"schedule": ["linear num_steps=50", "cosine num_steps=100"]}


def test_leaves_of_one_node_that_vary_independently_are_two_columns():
    configs = [{"a.x": x, "a.y": -x, "a.z": z, "a.w": 2 * z} for x in (1, 2) for z in (3, 4)]
    columns = varying_settings(configs)
    assert list(columns.values()) == [["x=1 y=-1"] * 2 + ["x=2 y=-2"] * 2, ["z=3 w=6", "z=4 w=8"] * 2]
    assert len(columns) == 2


def test_a_setting_that_some_configs_lack():
    assert varying_settings([{"a": 1}, {"b": True, "a": 1}]) == {"b": [None, True]}
    assert varying_settings([]) == {}
