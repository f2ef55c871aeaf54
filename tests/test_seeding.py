import pytest
import torch

from ddpm.seeding import ImageNoise, Stream, evenly_spread, generator, seed_at


def draw(*key):
    return torch.randn(5, generator=generator(*key))


def test_numbers_depend_on_the_key_alone():
    expected = draw(1, 2, 3)
    torch.manual_seed(9)
    torch.rand(7)
    assert torch.equal(draw(1, 2, 3), expected)


@pytest.mark.parametrize("other", [(1, 2, 4), (3, 2, 1), (1, 2), (1, 2, 3, 1), (1, 23), (1, 2 + 2**32, 3)])
def test_another_key_gives_other_numbers(other):
    assert not torch.allclose(draw(*other), draw(1, 2, 3))


def test_a_zero_at_the_end_makes_another_key():
    assert seed_at(4, 7, 1, 0) != seed_at(4, 7, 1)


def test_keys_that_are_near_give_seeds_that_are_not():
    seeds = [seed_at(stream, seed, i) for stream in range(5) for seed in range(5) for i in range(40)]
    assert len(set(seeds)) == len(seeds)
    ones = torch.tensor([[seed >> bit & 1 for bit in range(64)] for seed in seeds]).double().mean(0)
    assert (ones - 0.5).abs().max() < 0.1  # each bit is a fair coin: five standard deviations are 0.08


def test_seeds_are_the_same_in_every_version():
    """A run that is continued with a newer version draws what the old one would have drawn."""
    assert [seed_at(0), seed_at(1, 2, 3)] == [7434755675892716031, 13060417733913336131]


def test_no_two_uses_share_their_numbers():
    assert len({stream.value for stream in Stream}) == len(Stream.__members__)


def test_the_noise_of_an_image_does_not_depend_on_its_batch():
    like = torch.empty(4, 1, 3, 3)
    together = ImageNoise(Stream.SAMPLING, 5, indices=range(4))
    first, second = together(like), together(like)
    alone = ImageNoise(Stream.SAMPLING, 5, indices=[2])
    assert torch.equal(alone(like[:1]), first[2:3])
    assert torch.equal(alone(like[:1]), second[2:3])
    assert len(torch.cat([first, second]).flatten(1).unique(dim=0)) == 8


@pytest.mark.parametrize("other", [(Stream.EVALUATION, 5), (Stream.SAMPLING, 6)])
def test_the_noise_of_an_image_depends_on_each_part_of_the_key(other: tuple[int, ...]):
    like = torch.empty(1, 1, 3, 3)
    here, there = (ImageNoise(*key, indices=[2])(like) for key in ((Stream.SAMPLING, 5), other))
    assert not torch.equal(here, there)


def test_noise_is_standard_normal_in_float32():
    noise = ImageNoise(Stream.SAMPLING, 0, indices=range(500))(torch.empty(500, 1, 8, 8, dtype=torch.float64))
    assert noise.dtype == torch.float32
    assert abs(noise.mean().item()) < 0.02
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    correlation = torch.corrcoef(noise.flatten(1)[:50]).fill_diagonal_(0)
    assert correlation.abs().max() < 0.65  # 64 pixels: five standard deviations


def test_noise_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    ImageNoise(Stream.SAMPLING, 0, indices=range(3))(torch.empty(3, 1, 2, 2))
    generator(1, 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("number", [5, 13, 144])
def test_evenly_spread_leaves_two_gaps_in_the_golden_ratio(number):
    """This holds for every Fibonacci number of points."""
    points = evenly_spread(torch.arange(number), shift=0.3).sort().values
    gaps = torch.cat([points, points[:1] + 1]).diff()
    assert gaps.max() / gaps.min() == pytest.approx((1 + 5**0.5) / 2)
