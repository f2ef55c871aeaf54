import csv
import math

import pytest
import torch

from ddpm.metrics.bound import stratified_timesteps
from ddpm.metrics.estimates import Curve, Estimate, bin_edges, standard_error, write_curves


def draws(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_standard_error_is_that_of_a_mean():
    assert Estimate.of(torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx((2.5, (5 / 3) ** 0.5 / 2))
    assert standard_error(torch.ones(1, 2)).isnan().tolist() == [True, True]


def test_the_error_of_a_difference():
    assert Estimate(1.0, 0.3).minus(Estimate(3.0, 0.4)) == pytest.approx((-2.0, 0.5))


def test_a_curve_is_the_mean_in_each_bin():
    timesteps = torch.tensor([[1, 2], [2, 4], [3, 4]])
    values = torch.tensor([[1.0, 2.0], [4.0, 10.0], [6.0, 20.0]]).double()
    curve = Curve.of(timesteps, values, torch.tensor([1, 2, 4, 5]))
    assert curve.n.tolist() == [1, 3, 2]
    assert curve.mean.tolist() == [1, 4, 15]
    assert curve.se[0].isnan()  # one image alone
    assert curve.se[2].item() == pytest.approx(5 * math.sqrt(2) / math.sqrt(2))  # std √50 over √2
    total, deviation = curve.sum(timesteps, values)
    assert total == 1 + 2 * 4 + 15
    torch.testing.assert_close(deviation, 3 * torch.tensor([-2 * 2 / 3, -5 / 2, 2 * 2 / 3 + 5 / 2]).double())


def test_the_error_of_a_curve_is_that_between_images():
    """An image whose values are all high counts once, not once for each timestep."""
    offset = draws(50, 1)
    values = offset + torch.linspace(5, 0, 299, dtype=torch.float64)
    curve = Curve.of(stratified_timesteps(50, 299, 300, seed=0), values, bin_edges(300, values.numel()))
    torch.testing.assert_close(curve.se, (offset.std() / 50**0.5).expand(len(curve.se)))


def test_the_error_of_a_curve_is_the_spread_over_repetitions():
    edges = torch.tensor([1, 11, 31])
    curves = []
    for seed in range(200):
        t = stratified_timesteps(40, 3, 31, seed)
        generator = torch.Generator().manual_seed(seed)
        curves.append(Curve.of(t, torch.randn(40, 3, generator=generator).double() * t, edges))
    spread = torch.stack([curve.mean for curve in curves]).std(dim=0)
    claimed = torch.stack([curve.se for curve in curves]).mean(dim=0)
    torch.testing.assert_close(claimed, spread, rtol=0.15, atol=0)


def test_values_that_depend_only_on_the_timestep_have_no_error():
    """Some timesteps occur once more than others, and the images have different timesteps."""
    t = stratified_timesteps(300, 4, 60, seed=0)
    assert len(set(torch.bincount(t.flatten())[1:].tolist())) > 1
    values = 1 / t.double()
    total, deviation = Curve.of(t, values, torch.arange(1, 61)).sum(t, values)
    assert total == pytest.approx(sum(1 / step for step in range(1, 60)))
    assert deviation.abs().max() < 1e-9


def test_curves_are_compared_bin_by_bin():
    edges = torch.tensor([1, 2, 4])
    one = Curve(edges, torch.tensor([3.0, 1.0]), torch.tensor([0.3, 0.0]), torch.tensor([5, 7]))
    other = Curve(edges, torch.tensor([1.0, 1.5]), torch.tensor([0.4, 0.1]), torch.tensor([6, 6]))
    gap = one.minus(other)
    torch.testing.assert_close(gap.mean, torch.tensor([2.0, -0.5]))
    torch.testing.assert_close(gap.se, torch.tensor([0.5, 0.1]))
    assert gap.n.tolist() == [5, 6]
    relative = gap.over(torch.tensor([4.0, 2.0]))
    torch.testing.assert_close(relative.mean, torch.tensor([0.5, -0.25]))
    torch.testing.assert_close(relative.se, torch.tensor([0.125, 0.05]))


@pytest.mark.parametrize("num_steps", [2, 30, 1000])
@pytest.mark.parametrize("num_values", [1, 60, 2_000, 100_000, 10_000_000])
def test_bins_cover_the_chain_and_are_narrow_near_the_image(num_steps, num_values):
    edges = bin_edges(num_steps, num_values)
    widths = edges.diff()
    assert (edges[0], edges[-1]) == (1, num_steps)
    assert 1 <= len(widths) <= 100
    assert widths.min() >= 1
    assert widths.min() * num_values / (num_steps - 1) >= min(20, num_values)
    assert widths[0] == widths.min()
    if num_values >= 20 * (num_steps - 1):
        assert widths[0] == 1


def test_few_values_have_few_bins():
    assert bin_edges(1000, 60).tolist() == [1, 334, 667, 1000]
    assert len(bin_edges(1000, 10**6, at_most=20)) == 21


def test_curves_in_a_file_sum_to_their_total(tmp_path):
    values = draws(20, 299) ** 2
    t = stratified_timesteps(20, 299, 300, seed=0)
    curve = Curve.of(t, values, bin_edges(300, values.numel()))
    write_curves(tmp_path / "kl.csv", {"a": curve, "b": curve.over(torch.tensor(2.0))}, "bits")
    with (tmp_path / "kl.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, share in (("a", 1), ("b", 2)):
        mine = [row for row in rows if row["curve"] == name]
        first, last = [int(row["t_from"]) for row in mine], [int(row["t_to"]) for row in mine]
        assert first == [1, *(t + 1 for t in last[:-1])]
        assert last[-1] == 299
        assert sum(int(row["n"]) for row in mine) == 20 * 299
        total = sum(float(row["bits"]) * (b - a + 1) for row, a, b in zip(mine, first, last, strict=True))
        assert total == pytest.approx(values.sum(dim=1).mean().item() / share)
    total, deviation = curve.sum(t, values)
    torch.testing.assert_close(total + deviation, values.sum(dim=1))  # with all timesteps, an image's own sum
