import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ddpm.models import UNet
from ddpm.models.unet import GroupNorm, attend, scaled_norm


def perturbed(**settings) -> UNet:
    """Return a network whose zero-initialised layers have other values, as after a training step."""
    torch.manual_seed(0)
    network = UNet(**settings)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"channels": 8}, (28, 28)),
        ({"channels": 8, "image_channels": 3}, (32, 32)),
        ({"channels": 8, "image_channels": 3, "multipliers": (1, 2, 2, 4), "attention": (1, 3)}, (16, 40)),
        ({"channels": 8, "multipliers": (2,), "attention": (0,)}, (7, 5)),
        ({"channels": 8, "attention": (), "blocks": 3}, (12, 4)),
        ({"channels": 48, "blocks": 1}, (8, 8)),  # 12 groups at the first level, 3 heads at the last
        ({"channels": 37, "blocks": 1}, (8, 8)),  # a prime: one group
        ({"channels": 1, "blocks": 1}, (8, 8)),
        ({"channels": 8, "image_channels": 3, "patch": 3}, (12, 24)),
        ({"channels": 8, "multipliers": (1, 1, 1, 1), "padding": 2}, (28, 20)),
        (
            {"channels": 8, "multipliers": (1, 2), "attention": (), "image_channels": 3, "patch": 2, "fourier": 2},
            (8, 8),
        ),
    ],
    ids=str,
)
def test_the_output_has_the_shape_and_dtype_of_the_image_and_does_not_depend_on_gradients(settings, size):
    network = perturbed(**settings)
    x, t = torch.randn(2, settings.get("image_channels", 1), *size), torch.tensor([0, 999])
    output = network(x, t)
    assert output.shape == x.shape
    assert output.dtype == x.dtype
    assert output.std() > 0
    with torch.no_grad():  # the network computes in another memory layout
        torch.testing.assert_close(network(x, t), output, rtol=1e-4, atol=1e-5)


def test_a_new_network_outputs_zero():
    output = UNet(channels=8)(torch.randn(2, 1, 28, 28), torch.tensor([0, 500]))
    assert torch.equal(output, torch.zeros(2, 1, 28, 28))


def test_the_output_depends_on_the_timestep_and_on_no_other_image():
    network = perturbed(channels=8, blocks=1)
    image = torch.randn(1, 1, 28, 28)
    t = torch.tensor([0, 1, 500, 998, 999])
    together = network(image.expand(5, -1, -1, -1), t)
    for i in range(5):
        torch.testing.assert_close(together[i : i + 1], network(image, t[i : i + 1]), rtol=1e-4, atol=1e-5)
        for j in range(i):
            assert (together[i] - together[j]).abs().max() > 1e-3, f"t = {t[i]} and t = {t[j]} give the same output"


def test_a_label_changes_the_output_of_its_image_alone():
    network = perturbed(channels=8, blocks=1, num_classes=3)
    x, t = torch.randn(1, 1, 8, 8).expand(4, -1, -1, -1), torch.full((4,), 500)
    output = network(x, t, torch.tensor([0, 1, 2, 3]))
    for i in range(4):
        torch.testing.assert_close(network(x[:1], t[:1], torch.tensor([i])), output[i : i + 1], rtol=1e-4, atol=1e-5)
        for j in range(i):
            assert (output[i] - output[j]).abs().max() > 1e-3
    torch.testing.assert_close(network(x[:1], t[:1]), output[3:], rtol=1e-4, atol=1e-5)  # 3 means "no label"


def test_classes_leave_the_initial_values_of_the_other_weights_as_they_are():
    torch.manual_seed(0)
    plain = UNet(channels=8).state_dict()
    torch.manual_seed(0)
    conditional = UNet(channels=8, num_classes=3).state_dict()
    assert conditional.keys() - plain.keys() == {"embed_label.weight"}
    assert all(torch.equal(conditional[name], weight) for name, weight in plain.items())


def test_a_network_without_classes_refuses_labels():
    with pytest.raises(ValueError, match="takes no labels; set num_classes"):
        UNet(channels=8)(torch.zeros(1, 1, 8, 8), torch.tensor([0]), torch.tensor([0]))


@pytest.mark.parametrize("attention", [(), (0, 1, 2)], ids=str)
def test_every_parameter_learns(attention):
    network = perturbed(channels=16, attention=attention, blocks=1)
    network(torch.randn(4, 1, 8, 8), torch.arange(4) * 250).square().sum().backward()
    # A bias that a normalisation cancels has a gradient of 0 up to rounding. Softmax cancels the bias of the keys, a
    # third of the bias of qkv, so the test checks that bias as a whole.
    dead = []
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        gradient = parameter.grad.reshape(1 if name.endswith("qkv.bias") else len(parameter), -1)
        dead += [f"{name}[{i}]" for i in (gradient.abs().amax(dim=1) < 1e-5).nonzero()[:, 0].tolist()]
    assert dead == []


@pytest.mark.parametrize(("attention", "count"), [((), 0), ((2,), 5), ((0, 1), 8), ((1, 2), 9)], ids=str)
def test_attention_is_at_the_given_levels(attention, count):
    network = UNet(channels=8, attention=attention)  # a level has two blocks down, two up
    assert sum(type(module).__name__ == "SelfAttention" for module in network.modules()) == count


def test_only_attention_connects_far_pixels(monkeypatch):
    """The convolutions of this network reach 10 pixels to each side. Group norms connect all pixels, so remove them."""
    monkeypatch.setattr(nn.functional, "group_norm", lambda x, *rest: x)
    far = torch.zeros(1, 1, 2, 64)
    far[..., -1] = 1.0
    reach = {}
    for attention in ((), (0,)):
        network = perturbed(channels=8, multipliers=(1,), blocks=1, attention=attention)
        t = torch.tensor([10])
        reach[attention] = (network(far, t) - network(torch.zeros_like(far), t))[..., 0].abs().max().item()
    assert reach[()] == 0.0
    assert reach[(0,)] > 0.0


def test_dropout_acts_in_training_alone():
    network = perturbed(channels=8, dropout=0.5)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    assert torch.equal(network(x, t), network(x, t))
    network.train()
    assert not torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (6, 1), (16, 4), (32, 8), (37, 1), (48, 12), (128, 32), (192, 32)]
)
def test_groups_divide_the_width_and_hold_four_channels_or_more(channels, groups):
    norm = UNet(channels=channels, multipliers=(1,), blocks=1, attention=()).output[0]
    assert norm.num_groups == groups


def test_bfloat16_autocast_agrees_with_float32():
    network = perturbed(channels=16)
    x, t = torch.randn(4, 1, 28, 28), torch.tensor([0, 10, 500, 999])
    exact = network(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(x, t)
    assert rough.dtype == torch.float32
    assert (rough - exact).square().mean().sqrt() < 0.03 * exact.std()


def test_the_timestep_embedding_stays_exact_under_autocast():
    embed = UNet(channels=16).embed[0]
    t = torch.arange(1000)
    half = 32
    angles = t.double()[:, None] * 10_000.0 ** (-torch.arange(half).double() / half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = embed(t)
    assert embedding.dtype == torch.float32
    expected = torch.cat([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(embedding.double(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels must be 1 or more, not 0"),
        ({"channels": -8}, "channels must be 1 or more, not -8"),
        ({"image_channels": 0}, "image_channels must be 1 or more"),
        ({"blocks": 0}, "blocks must be 1 or more"),
        ({"multipliers": ()}, "multipliers must be"),
        ({"multipliers": (1, 0)}, "multipliers must be"),
        ({"attention": (3,)}, r"attention names level\(s\) \[3\], but 3 multipliers make levels 0 to 2"),
        ({"attention": (-1,)}, r"attention names level\(s\) \[-1\]"),
        ({"patch": 0}, "patch must be 1 or more, not 0"),
        ({"padding": -1}, "padding=-1 must be from 0 to 64 pixels"),
        ({"padding": 65}, "padding=65 must be"),
        ({"fourier": 9}, "fourier=9 must be from 0 to 8 octaves"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"num_classes": 0}, "num_classes must be 1 or more, not 0"),
    ],
    ids=str,
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        UNet(**settings)


@pytest.mark.parametrize(
    ("size", "remedy"), [((30, 28), "to 32 x 28"), ((28, 29), "to 28 x 32"), ((2, 2), "to 4 x 4")], ids=str
)
def test_an_image_that_cannot_be_halved_is_refused_with_sizes_that_work(size, remedy):
    with pytest.raises(ValueError, match=rf"divisible by 4.*{size[0]} x {size[1]}.*{remedy}"):
        UNet(channels=8)(torch.zeros(1, 1, *size), torch.tensor([0]))


def test_a_patch_is_refused_with_sizes_that_work():
    with pytest.raises(ValueError, match=r"patch=3 needs .* divisible by 12.*\(to 36 x 36"):
        UNet(channels=8, patch=3)(torch.zeros(1, 1, 28, 28), torch.tensor([0]))


def test_padding_is_named_where_it_helps():
    x, t = torch.zeros(1, 1, 28, 28), torch.tensor([0])
    with pytest.raises(ValueError, match=r"images are 28 x 28: set padding=2, resize them \(to 32 x 32"):
        UNet(channels=8, multipliers=(1, 1, 1, 1))(x, t)
    with pytest.raises(ValueError, match=r"images, padded by 1, are 30 x 30: set padding=2"):
        UNet(channels=8, multipliers=(1, 1, 1, 1), padding=1)(x, t)
    with pytest.raises(ValueError, match=r"28 x 27: resize them"):
        UNet(channels=8)(x[..., 1:], t)


def test_padding_is_a_border_of_zeros_that_is_cut_off_the_output():
    settings = {"channels": 8, "multipliers": (1, 1, 1, 1), "blocks": 1}
    padded, plain = perturbed(**settings, padding=2), perturbed(**settings)
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([3, 700])
    bordered = torch.zeros(2, 1, 32, 32)
    bordered[:, :, 2:-2, 2:-2] = x
    assert torch.equal(padded(x, t), plain(bordered, t)[:, :, 2:-2, 2:-2])


def test_fourier_features_show_bfloat16_noise_narrower_than_a_grey_level():
    """Near 1, neighbours in bfloat16 are half a grey level apart."""
    black = torch.full((1, 1, 8, 8), -1.0)
    noisy, t = black + 1e-3 * torch.rand(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)
    for fourier, is_seen in ((0, False), (2, True)):
        network = perturbed(channels=8, multipliers=(1, 2), attention=(), fourier=fourier)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(network(noisy, t), network(black, t)) is not is_seen


def fourier_features(x: torch.Tensor, octaves: int) -> torch.Tensor:
    """Return what the first convolution gets beside the image."""
    network = UNet(image_channels=x.shape[1], channels=8, multipliers=(1,), attention=(), fourier=octaves)
    found = []
    network.input.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    network(x, torch.zeros(len(x), dtype=torch.int64))
    assert torch.equal(found[0][:, : x.shape[1]], x)
    return found[0][:, x.shape[1] :]


def test_fourier_features_are_the_sines_and_cosines_of_octaves():
    x = torch.rand(1, 2, 4, 4) * 2 - 1
    angles = [255 * torch.pi * x, 127.5 * torch.pi * x, 63.75 * torch.pi * x]
    expected = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    torch.testing.assert_close(fourier_features(x, octaves=3), expected, rtol=0, atol=1e-4)


def test_the_first_fourier_features_are_the_same_for_all_grey_levels():
    levels = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    for shift in (0.0, 0.3):  # in levels
        angle = torch.tensor(2 * torch.pi * shift)
        expected = torch.stack([-angle.sin(), -angle.cos()]).view(1, 2, 1, 1).expand(1, 2, 16, 16)
        found = fourier_features(levels + shift * 2 / 255, octaves=1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_full_resolution_is_that_of_the_patches():
    network = UNet(channels=8, multipliers=(1,), patch=4, attention=())
    sizes = []
    network.input.register_forward_hook(lambda module, inputs, output: sizes.append((inputs[0].shape, output.shape)))
    network(torch.zeros(1, 1, 28, 20), torch.tensor([0]))
    assert sizes == [((1, 16, 7, 5), (1, 8, 7, 5))]


def test_an_image_of_other_channels_is_refused():
    with pytest.raises(ValueError, match=r"channel\(s\), but these have 3; set image_channels=3"):
        UNet(channels=8)(torch.zeros(1, 3, 8, 8), torch.tensor([0]))


@torch.no_grad()
@pytest.mark.parametrize(("offset", "tolerance"), [(0, 1e-5), (1000, 1e-3)])
def test_a_group_norm_in_channels_last_agrees_with_torchs(offset, tolerance):
    torch.manual_seed(0)
    norm = GroupNorm(3, 12)
    norm.weight.normal_()
    norm.bias.normal_()
    x = (torch.randn(4, 12, 6, 5) + offset).contiguous(memory_format=torch.channels_last)
    expected = F.group_norm(x.double(), 3, norm.weight.double(), norm.bias.double(), norm.eps).float()
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_scaled_norm_agrees_with_its_formula_and_so_do_its_gradients(layout):
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 8, dtype=torch.float64)
    x = torch.randn(3, 8, 5, 4, dtype=torch.float64).contiguous(memory_format=layout)
    parts = [x, *torch.randn(2, 3, 8, dtype=torch.float64)]
    for part in (*norm.parameters(), *parts):
        torch.nn.init.normal_(part).requires_grad_()
    x, scale, shift = parts
    found = scaled_norm(norm, x, scale, shift)
    groups = x.unflatten(1, (2, 4))
    mean, variance = groups.mean((2, 3, 4), keepdim=True), groups.var((2, 3, 4), correction=0, keepdim=True)
    normed = ((groups - mean) / (variance + norm.eps).sqrt()).flatten(1, 2)
    weight, bias, scale_, shift_ = (part[..., None, None] for part in (norm.weight, norm.bias, scale, shift))
    expected = (normed * weight + bias) * scale_ + shift_
    torch.testing.assert_close(found, expected)
    inputs = [*parts, *norm.parameters()]
    gradients = (torch.autograd.grad(output.sin().sum(), inputs) for output in (found, expected))
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
def test_torch_export_with_any_batch_size():
    network = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(1,)).eval()
    nn.init.normal_(network.output[-1].weight, std=0.1)  # a new network outputs 0
    batch = torch.export.Dim("batch")
    inputs = torch.randn(3, 1, 8, 8), torch.arange(3)
    exported = torch.export.export(network, inputs, dynamic_shapes=({0: batch}, {0: batch})).module()
    for size in (1, 2, 7):
        x, t = torch.randn(size, 1, 8, 8), torch.arange(size)
        torch.testing.assert_close(exported(x, t), network(x, t))


def test_attention_is_torchs_attention():
    q, k, v = torch.randn(3, 2, 4, 8, 9, requires_grad=True).unbind()
    ours = attend(q, k, v)
    theirs = F.scaled_dot_product_attention(*(x.transpose(-1, -2) for x in (q, k, v))).transpose(-1, -2)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (ours, theirs)]
    torch.testing.assert_close(*gradients)
