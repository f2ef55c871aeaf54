"""The points of a search as overrides."""

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import (
    CategoricalDistribution,
    DiscreteUniformDistribution,
    IntUniformDistribution,
    LogUniformDistribution,
    UniformDistribution,
)

from ddpm.errors import UserError
from ddpm.launch.search.space import Space, spelled


def space(*overrides):
    return Space.of(OverridesParser.create().parse_overrides(list(overrides)))


def test_what_has_several_values_is_chosen_and_the_rest_is_fixed():
    found = space("seed=1", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "~logger", "schedule=linear,cosine")
    assert found.fixed == ["seed=1", "~logger"]
    assert found.varied == {
        "optimizer.lr": LogUniformDistribution(1e-4, 1e-2),
        "schedule": CategoricalDistribution(["linear", "cosine"]),
    }
    point = {"schedule": "cosine", "optimizer.lr": 0.000123456789}
    assert found.job(point) == ["seed=1", "~logger", "optimizer.lr=0.000123", "schedule=cosine"]


def test_a_later_override_counts():
    found = space("seed=1,2", "optimizer.lr=interval(0.1,0.2)", "seed=3", "optimizer.lr=1e-3,1e-4")
    assert found.fixed == ["seed=3"]
    assert found.job({"optimizer.lr": 1e-4}) == ["seed=3", "optimizer.lr=0.0001"]


def test_corners_hold_every_end_and_choice_once():
    found = space("a=interval(1.0,2.0)", "b=x,y,z", "c=range(1,9)", "seed=0")
    assert [" ".join(job[1:]) for job in found.corners()] == [
        "a=1.0 b=x c=1", "a=2.0 b=x c=1", "a=1.0 b=y c=1", "a=1.0 b=z c=1", "a=1.0 b=x c=9",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("among", "value", "typed"),
    [
        (LogUniformDistribution(1e-4, 1e-2), 0.00031415926, "0.000314"),
        (LogUniformDistribution(1e-4, 1e-2), 1e-2, "0.01"),
        (LogUniformDistribution(0.9, 0.91), 0.9012345678, "0.90123"),  # near each other, and still told apart
        (UniformDistribution(0.99, 0.9999), 0.99512345678, "0.99512"),
        (UniformDistribution(0.12344, 0.9), 0.123441, "0.12344"),  # not 0.1234, which lies outside
        (UniformDistribution(0, 300), 123.456789, "123.5"),
        (UniformDistribution(0.5, 0.5), 0.5, "0.5"),
        (DiscreteUniformDistribution(0.1, 0.9, 0.1), 0.1 + 2 * 0.1, "0.3"),
        (IntUniformDistribution(1, 10**9), 123456789, "123456789"),
        (CategoricalDistribution([0.123456789, 1]), 0.123456789, "0.123456789"),
    ],
)
def test_values_are_spelled_to_about_a_thousandth_of_their_interval(among, value, typed):
    assert spelled(value, among) == typed


def test_values_a_two_hundredth_of_their_interval_apart_stay_apart():
    among = LogUniformDistribution(1e-4, 1e-2)
    values = [1e-4 * math.exp(i * math.log(100) / 200) for i in range(201)]
    assert len({spelled(value, among) for value in values}) == 201


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1"], "nothing to search"),
        (["experiment=mnist,quickstart"], "within one experiment"),
        (["optimizer.lr=tag(log,interval(0.0,1.0))"], "the space of the search: "),
        (["schedule=glob(*)"], "the space of the search: "),
    ],
)
def test_mistakes_are_told(overrides, message):
    with pytest.raises(UserError, match=message):
        space(*overrides)
