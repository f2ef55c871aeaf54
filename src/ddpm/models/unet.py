"""A U-Net after Ho et al. 2020, with the scale-shift conditioning of Nichol & Dhariwal 2021.

Each level has half the resolution of the level above it. An image goes down through the levels and up again; a
block on the way up also gets the output of the matching block on the way down. The last convolution of each block
and of the network is initialised to zero, so a new network outputs 0.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

MAX_PADDING = 64
"""pixels; a checkpoint of a stranger could ask for more than the memory holds"""
MAX_FOURIER = 8
"""octaves from one grey level to half of the range -1 … 1; slower waves show no more than the image itself"""


class UNet(nn.Module):
    """A U-Net conditioned on the timestep and, with `num_classes`, on a label.

    Args:
        image_channels: channels of the images, input and output (1 for grey, 3 for colour).
        channels: width (number of channels) at full resolution. All other widths are multiples of it, so sweep it.
        multipliers: width of each level as a multiple of `channels`; one number for each level.
        blocks: residual blocks of each level on the way down, and again on the way up.
        attention: levels with self-attention after each block; 0 is full resolution. If the last level has
            self-attention, the middle has it too.
        dropout: probability that an activation inside a residual block is dropped.
        num_classes: number of classes of a conditional network; None for an unconditional one.
        patch: side in pixels of the squares that become the channels of one position, so that full resolution has
            1/patch of the image's height and width (a pixel-unshuffle); 1 leaves the image as it is.
        padding: width in pixels of a border of zeros that the network adds to the image and cuts off its output: 2 lets
            four levels work on 28×28, as 32×32. Losses, bound and samples never see the border.
        fourier: number of octaves n of Fourier features: the sines and cosines of 255πx, 255πx/2, …, 255πx/2ⁿ⁻¹ are
            further input channels, computed in float32 (after Kingma et al. 2021). The first has the period of one grey
            level, 2/255, so it shows noise narrower than that, on which the likelihood depends.

    Raises:
        ValueError: a setting is invalid, or (in `forward`) an image has the wrong channels or a side that cannot be
            halved often enough.
    """

    def __init__(
        self,
        image_channels: int = 1,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (2,),
        dropout: float = 0.0,
        num_classes: int | None = None,
        patch: int = 1,
        padding: int = 0,
        fourier: int = 0,
    ) -> None:
        super().__init__()
        _check_settings(
            image_channels, channels, multipliers, blocks, attention, dropout, patch, num_classes, padding, fourier
        )
        widths = [channels * m for m in multipliers]
        levels = range(len(widths))
        embedding = 4 * channels

        def level(i: int, inputs: int) -> nn.ModuleList:
            return nn.ModuleList(
                Block(inputs, widths[i], embedding, dropout, attend=i in attention) for _ in range(blocks)
            )

        self.image_channels = image_channels
        self.patch = patch
        self.padding = padding
        self.fourier = fourier
        self.embed = nn.Sequential(
            SinusoidalEmbedding(embedding),
            nn.Linear(embedding, embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
        )
        self.input = conv3x3(image_channels * (1 + 2 * fourier) * patch**2, widths[0])
        self.down = nn.ModuleList(level(i, widths[i]) for i in levels)
        self.downsample = nn.ModuleList(conv3x3(widths[i], widths[i + 1], stride=2) for i in levels[:-1])
        self.middle = nn.ModuleList(
            Block(widths[-1], widths[-1], embedding, dropout, attend=attend)
            for attend in (levels[-1] in attention, False)
        )
        self.up = nn.ModuleList(level(i, 2 * widths[i]) for i in levels)
        self.upsample = nn.ModuleList(Upsample(widths[i + 1], widths[i]) for i in levels[:-1])
        self.output = nn.Sequential(
            group_norm(widths[0]), nn.SiLU(), zero_init(conv3x3(widths[0], image_channels * patch**2))
        )
        self.num_classes = num_classes
        if num_classes is not None:  # the last row stands for "no label"
            self.embed_label = nn.Embedding(num_classes + 1, embedding)

    def forward(
        self, x: Float[Tensor, "B C H W"], t: Int64[Tensor, " B"], labels: Int64[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B C H W"]:
        """Return the output for noisy images `x` at timesteps `t` (0 … T-1), in the shape and dtype of `x`.

        Args:
            labels: the class of each image, 0 … num_classes-1; `num_classes` means "no label", as None does for all.
        """
        self._check_size(x)
        embedding = self.embed(t)
        if self.num_classes is not None:
            embedding = embedding + self.embed_label(torch.full_like(t, self.num_classes) if labels is None else labels)
        elif labels is not None:
            raise ValueError("The network has no classes, so it takes no labels; set num_classes.")
        if self.padding:
            x = F.pad(x, [self.padding] * 4)
        h = self.input(F.pixel_unshuffle(self._with_fourier_features(x), self.patch))
        if is_float32_inference(h):
            h = h.contiguous(memory_format=torch.channels_last)  # convolutions keep this layout, and are faster in it
        skips = []
        for i, level in enumerate(self.down):
            assert isinstance(level, nn.ModuleList)
            if i > 0:
                h = self.downsample[i - 1](h)
            for block in level:
                h = block(h, embedding)
                skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for i, level in reversed(list(enumerate(self.up))):
            assert isinstance(level, nn.ModuleList)
            for block in level:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            if i > 0:
                h = self.upsample[i - 1](h)
        h = F.pixel_shuffle(self.output(h), self.patch).to(x.dtype)
        return F.pad(h, [-self.padding] * 4) if self.padding else h

    def _with_fourier_features(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B features H W"]:
        if not self.fourier:
            return x  # torch.cat would copy it
        angles = [255 * math.pi / 2**n * x for n in range(self.fourier)]
        return torch.cat([x, *(wave(angle) for angle in angles for wave in (torch.sin, torch.cos))], dim=1)

    def _check_size(self, x: Tensor) -> None:
        _, channels, height, width = x.shape
        if channels != self.image_channels:
            raise ValueError(
                f"The network expects images of {self.image_channels} channel(s), "
                f"but these have {channels}; set image_channels={channels}."
            )
        step = self.patch * 2 ** (len(self.down) - 1)
        sides = height + 2 * self.padding, width + 2 * self.padding
        if any(side % step for side in sides):
            fit = " x ".join(str(math.ceil(side / step) * step) for side in sides)
            more = next((p for p in range(step) if not any((side + 2 * p) % step for side in sides)), None)
            padding = "" if more is None else f"set padding={self.padding + more}, "
            padded = f", padded by {self.padding}," if self.padding else ""
            raise ValueError(
                f"A U-Net of {len(self.down)} levels and patch={self.patch} needs height and width divisible by "
                f"{step}, but the images{padded} are {sides[0]} x {sides[1]}: {padding}resize them (to {fit}, say), or "
                "use fewer multipliers or a smaller patch."
            )


class SinusoidalEmbedding(nn.Module):
    """Cosines and sines of t at `dim / 2` wavelengths from 2π to 2π · 10,000 (Vaswani et al. 2017); [B] -> [B, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Int64[Tensor, " B"]) -> Float[Tensor, "B D"]:
        half = self.dim // 2
        # Autocast does not change these operations, so they stay in float32. In bfloat16, 998 equals 999.
        exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angles = t.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Block(nn.Module):
    """A residual block whose activations the timestep scales and shifts, then self-attention if `attend`."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, attend: bool) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = conv3x3(inputs, outputs)
        self.scale_shift = nn.Linear(embedding, 2 * outputs)
        self.norm2 = group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(conv3x3(outputs, outputs))
        self.skip = nn.Conv2d(inputs, outputs, kernel_size=1) if inputs != outputs else nn.Identity()
        self.attention = SelfAttention(outputs) if attend else nn.Identity()

    def forward(self, x: Float[Tensor, "B C H W"], embedding: Float[Tensor, "B D"]) -> Float[Tensor, "B outputs H W"]:
        scale, shift = self.scale_shift(F.silu(embedding)).chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = F.silu(scaled_norm(self.norm2, h, 1 + scale, shift))
        h = self.conv2(self.dropout(h))
        return self.attention(self.skip(x) + h)


class SelfAttention(nn.Module):
    """Residual self-attention between the pixels of a feature map; each head has at least 32 channels if possible."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = largest_divisor(channels, at_most=channels // 32)
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.project = zero_init(nn.Conv2d(channels, channels, kernel_size=1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        qkv = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1))
        return x + self.project(attend(*qkv.unbind(1)).reshape(x.shape))


def attend(
    q: Float[Tensor, "B heads D N"], k: Float[Tensor, "B heads D N"], v: Float[Tensor, "B heads D N"]
) -> Float[Tensor, "B heads D N"]:
    """Return the attention of N positions to each other, softmax(qᵀk / √D) applied to v.

    On a CPU, two matmuls in this layout are faster than `scaled_dot_product_attention`, which wants [B, heads, N, D].
    """
    if q.device.type == "cpu":
        weights = ((k * k.shape[-2] ** -0.5).transpose(-1, -2) @ q).softmax(dim=-2)  # [B, heads, keys, queries]
        return v @ weights
    q, k, v = (x.transpose(-1, -2).contiguous() for x in (q, k, v))  # its fast kernels need contiguous channels
    return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)


class Upsample(nn.Module):
    """Doubles the resolution by nearest neighbour, then convolves (a transposed convolution leaves a checkerboard)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = conv3x3(inputs, outputs)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B outputs 2*H 2*W"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1)


def zero_init(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def is_float32_inference(x: Tensor) -> bool:
    """Return whether code that is not compiled computes `x` in float32, on a CPU, without gradients."""
    is_float32 = x.device.type == "cpu" and x.dtype == torch.float32
    return is_float32 and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


class GroupNorm(nn.GroupNorm):
    """torch's GroupNorm, whose CPU kernel is slow for channels_last: without gradients, this takes half the time."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        if x.is_contiguous() or not is_float32_inference(x):
            return super().forward(x)
        centred = x - self._group_mean(x)
        scale = self.weight[:, None, None] * (self._group_mean(centred.square()) + self.eps).rsqrt()
        return torch.addcmul(self.bias[:, None, None], centred, scale)

    def _group_mean(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C 1 1"]:
        """Return for each channel the mean of its group. First over pixels: torch is fast at sums of whole channels."""
        means = x.mean(dim=(2, 3)).unflatten(1, (self.num_groups, -1))
        return means.mean(dim=2, keepdim=True).expand_as(means).flatten(1)[:, :, None, None]


def group_norm(channels: int) -> GroupNorm:
    """Return a GroupNorm with at most 32 groups, the papers' number, and at least 4 channels in each group.

    4 is the group size of the papers' narrowest layer, which has 128 channels. A group of one channel would remove
    that channel's mean, and with it the brightness of the image. The number of groups divides `channels`.
    """
    return GroupNorm(largest_divisor(channels, at_most=min(32, channels // 4)), channels)


def scaled_norm(
    norm: nn.GroupNorm, x: Float[Tensor, "B C H W"], scale: Float[Tensor, "B C"], shift: Float[Tensor, "B C"]
) -> Float[Tensor, "B C H W"]:
    """Return `norm(x) * scale + shift`, by one call of group_norm if `x` is contiguous and the code is not compiled.

    The call takes the batch as one image with B·C channels, so that each image can have its own scale and shift. This
    saves passes over the activations: one forward, three backward.
    """
    if torch.compiler.is_compiling() or not x.is_contiguous():  # torch.compile fuses the passes itself
        return torch.addcmul(shift[:, :, None, None], norm(x), scale[:, :, None, None])
    scale, shift = scale.to(norm.weight.dtype), shift.to(norm.weight.dtype)
    weight, bias = (norm.weight * scale).flatten(), (norm.bias * scale + shift).flatten()
    groups = len(x) * norm.num_groups
    return F.group_norm(x.view(1, -1, *x.shape[2:]), groups, weight, bias, norm.eps).view_as(x)


def largest_divisor(number: int, at_most: int) -> int:
    """Return the largest divisor of `number` that is at most `at_most`, and at least 1."""
    return next((d for d in range(at_most, 1, -1) if number % d == 0), 1)


def _check_settings(
    image_channels: int,
    channels: int,
    multipliers: Sequence[int],
    blocks: int,
    attention: Sequence[int],
    dropout: float,
    patch: int,
    num_classes: int | None,
    padding: int,
    fourier: int,
) -> None:
    at_least_1 = {
        "image_channels": image_channels,
        "channels": channels,
        "blocks": blocks,
        "patch": patch,
        "num_classes": num_classes,
    }
    for name, value in at_least_1.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more, not {value}.")
    if not 0 <= padding <= MAX_PADDING:
        raise ValueError(f"padding={padding} must be from 0 to {MAX_PADDING} pixels.")
    if not 0 <= fourier <= MAX_FOURIER:
        raise ValueError(f"fourier={fourier} must be from 0 to {MAX_FOURIER} octaves.")
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers must be one integer of 1 or more for each level, not {list(multipliers)}.")
    absent = [i for i in attention if not 0 <= i < len(multipliers)]
    if absent:
        raise ValueError(
            f"attention names level(s) {absent}, but {len(multipliers)} multipliers make levels 0 to "
            f"{len(multipliers) - 1}."
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}.")
