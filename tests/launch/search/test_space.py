"""The space of a search, and its points as overrides."""

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ddpm.errors import UserError
from ddpm.launch.search.space import Space, format_value


def space(*overrides):
    return Space.of(OverridesParser.create().parse_overrides(list(overrides)))


def test_keys_with_several_values_are_varied_and_the_others_fixed():
    found = space("seed=1", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "~logger", "schedule=linear,cosine")
    assert found.fixed == ["seed=1", "~logger"]
    assert list(found.varied) == ["optimizer.lr", "schedule"]
    point = {"schedule": "cosine", "optimizer.lr": 0.000123456789}
    assert found.job(point) == ["seed=1", "~logger", "optimizer.lr=0.000123", "schedule=cosine"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0,2)", FloatDistribution(0, 2)),
        ("tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(log,int(interval(1,8)))", IntDistribution(1, 8, log=True)),
        ("range(1,9)", IntDistribution(1, 8)),  # as in a grid, the end is left out
        ("shuffle(range(9,1,-2))", IntDistribution(3, 9, step=2)),
        ("range(0.1,0.5,0.2)", FloatDistribution(0.1, 0.3, step=0.2)),
        ("linear,cosine", CategoricalDistribution(["linear", "cosine"])),
        ("shuffle(1,2,3,4,5)", CategoricalDistribution(["1", "2", "3", "4", "5"])),
        ("1e-3,true,null,'a b',[1,2],1e-3", CategoricalDistribution(["0.001", "True", "null", "'a b'", "[1,2]"])),
    ],
)
def test_each_kind_of_sweep_has_its_distribution(text, expected):
    assert space(f"key={text}").varied == {"key": expected}


def test_a_later_override_counts():
    found = space("seed=1,2", "optimizer.lr=interval(0.1,0.2)", "seed=3", "optimizer.lr=1e-3,1e-4")
    assert found.fixed == ["seed=3"]
    assert found.job({"optimizer.lr": "0.0001"}) == ["seed=3", "optimizer.lr=0.0001"]


def test_corners_hold_every_end_and_choice_once():
    found = space("a=interval(1.0,2.0)", "b=x,y,z", "c=range(1,9)", "d=interval(3,3)", "seed=0")
    assert [" ".join(job[1:]) for job in found.corners()] == [
        "a=1.0 b=x c=1 d=3.0", "a=2.0 b=x c=1 d=3.0", "a=1.0 b=y c=1 d=3.0", "a=1.0 b=z c=1 d=3.0",
        "a=1.0 b=x c=8 d=3.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("distribution", "value", "text"),
    [
        (FloatDistribution(1e-4, 1e-2, log=True), 0.00031415926, "0.000314"),
        (FloatDistribution(1e-4, 1e-2, log=True), 1e-2, "0.01"),
        (FloatDistribution(0.9, 0.91, log=True), 0.9012345678, "0.90123"),  # a narrow interval needs more digits
        (FloatDistribution(0.99, 0.9999), 0.99512345678, "0.99512"),
        (FloatDistribution(0.12344, 0.9), 0.123441, "0.12344"),  # not 0.1234, which lies outside
        (FloatDistribution(0, 300), 123.456789, "123.5"),
        (FloatDistribution(0.5, 0.5), 0.5, "0.5"),
        (FloatDistribution(0.1, 0.9, step=0.1), 0.1 + 2 * 0.1, "0.3"),
        (IntDistribution(1, 10**9), 123456789, "123456789"),
        (CategoricalDistribution(["0.123456789", "1"]), "0.123456789", "0.123456789"),
    ],
)
def test_values_are_rounded_to_about_a_thousandth_of_their_interval(distribution, value, text):
    assert format_value(value, distribution) == text


def test_values_a_two_hundredth_of_their_interval_apart_stay_apart():
    values = [1e-4 * math.exp(i * math.log(100) / 200) for i in range(201)]
    assert len({format_value(value, FloatDistribution(1e-4, 1e-2, log=True)) for value in values}) == 201


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1", "nothing to search"),
        ("experiment=mnist,quickstart", "within one experiment"),
        ("optimizer.lr=tag(log,interval(0.0,1.0))", r"^optimizer.lr=tag\(log,interval\(0.0,1.0\)\): "),
        ("optimizer.lr=interval(1.0,0.0)", r"^optimizer.lr=interval\(1.0,0.0\): "),
        ("seed=tag(uniform,interval(1,8))", "the only tag that a search knows is log, not uniform"),
        ("seed=tag(log,choice(1,2))", "a list of choices takes no tags"),
        ("seed=range(1,1)", "the range is empty"),
        ("schedule=glob(*)", r"^schedule=glob\(\*\): "),  # this parser has no configs
    ],
)
def test_mistakes_are_refused(override, message):
    with pytest.raises(UserError, match=message):
        space(override)
