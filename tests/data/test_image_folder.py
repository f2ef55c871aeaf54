import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data import ImageFolder, MNISTMini
from ddpm.data.image_folder import read_picture
from ddpm.data.picture_files import find_pictures, read_pictures
from ddpm.errors import UserError


@pytest.fixture(scope="module")
def digits():
    data = MNISTMini()
    data.setup()
    return data.split("test")


def write_digits(folder, digits, count=40, by_digit=True):
    """The first digits as 28×28 PNGs, in one sub-folder for each digit or in none."""
    for i, (image, label) in enumerate(zip(*digits, strict=True)):
        if i == count:
            return
        path = folder / (str(label.item()) if by_digit else "") / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)


def ready(folder, **settings):
    data = ImageFolder(folder, **{"batch_size": 4, "image_channels": 1, "image_size": 28} | settings)
    data.prepare_data()
    data.setup("fit")
    return data


def everything(data):
    images, labels = zip(*(data.split(name) for name in ("train", "validation", "test")), strict=True)
    return torch.cat(images), torch.cat(labels)


def as_set(images, labels):
    return {(image.numpy().tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)}


def test_pictures_are_read_unchanged(tmp_path, digits):
    write_digits(tmp_path, digits, count=80)
    data = ready(tmp_path)
    assert [len(data.split(name).images) for name in ("train", "validation", "test")] == [64, 8, 8]
    assert set(digits.labels[:80].tolist()) == set(range(10))  # so that a folder's index is its digit
    assert as_set(*everything(data)) == as_set(digits.images[:80], digits.labels[:80])


def test_a_flat_folder_has_one_label(tmp_path, digits):
    write_digits(tmp_path, digits, by_digit=False)
    images, labels = everything(ready(tmp_path))
    assert labels.tolist() == [0] * 40
    assert as_set(images, labels) == as_set(digits.images[:40], torch.zeros(40, dtype=torch.int64))


def test_the_split_depends_only_on_the_split_seed(tmp_path, digits):
    write_digits(tmp_path, digits)
    test = ready(tmp_path).split("test").images
    assert torch.equal(ready(tmp_path, seed=1).split("test").images, test)
    assert not torch.equal(ready(tmp_path, split_seed=1).split("test").images, test)


def test_fractions_are_rounded_up(tmp_path, digits):
    write_digits(tmp_path, digits, count=11)
    data = ready(tmp_path, validation_fraction=0.01, test_fraction=0.2)
    assert [len(data.split(name).images) for name in ("train", "validation", "test")] == [7, 1, 3]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize("stored", ["L", "RGB", "RGBA", "P", "1"])
def test_pictures_of_any_mode_get_the_requested_channels(tmp_path, channels, mode, stored):
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8))
    picture.convert(stored).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png", (channels, 8, 8))
    expected = np.atleast_3d(np.asarray(picture.convert(stored).convert(mode)))
    assert read.dtype == torch.uint8
    assert np.array_equal(read.permute(1, 2, 0), expected)


@pytest.mark.parametrize("size", [(40, 20), (80, 40)])
def test_the_centre_is_cropped_and_scaled(tmp_path, size):
    """Red, green, green, blue in quarters from left to right: the square in the middle is green."""
    width, height = size
    picture = Image.new("RGB", size, "lime")
    picture.paste("red", (0, 0, width // 4, height))
    picture.paste("blue", (3 * width // 4, 0, width, height))
    picture.save(tmp_path / "a.png")
    square = read_picture(tmp_path / "a.png", (3, 10, 10))
    assert (square.argmax(dim=0) == 1).all()
    wide = read_picture(tmp_path / "a.png", (3, 10, 20))
    assert (wide.argmax(dim=0) == torch.tensor([0] * 5 + [1] * 10 + [2] * 5)).all()


def test_the_orientation_of_a_photo_is_applied(tmp_path):
    upside_down = Image.Exif()
    upside_down[0x0112] = 3  # orientation: by 180°
    picture = Image.new("L", (8, 8))
    picture.paste(255, (0, 0, 8, 4))
    picture.save(tmp_path / "a.png", exif=upside_down)
    assert read_picture(tmp_path / "a.png", (1, 8, 8))[0, :, 0].tolist() == [0] * 4 + [255] * 4


def test_a_folder_of_mixed_sizes_becomes_one_size(tmp_path):
    for i, size in enumerate([(30, 50), (64, 64), (100, 17), (33, 32), (8, 8), (500, 400)]):
        Image.new("RGB", size, (10 * i, 0, 0)).save(tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}")
    data = ready(tmp_path, batch_size=2, image_channels=3, image_size=[16, 24])
    assert data.image_shape == (3, 16, 24)
    assert everything(data)[0].shape == (6, 3, 16, 24)


def test_each_real_picture_that_is_not_hidden_counts_once(tmp_path, capsys):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".cache").mkdir()
    for name in ("z.png", "b/a.JPG", "b/c/y.jfif", "b/.hidden.png", ".cache/x.png", "notes.txt", "LICENSE"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b" / "loop").symlink_to("..")
    (tmp_path / "b" / "again.png").symlink_to("../z.png")
    os.mkfifo(tmp_path / "pipe.png")
    others = []
    found = find_pictures(tmp_path, others)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b/a.JPG", "b/again.png", "b/c/y.jfif"]
    assert [path.name for path in others] == ["LICENSE", "notes.txt"]


def test_files_that_are_left_out_are_counted_in_one_line(tmp_path, digits, capsys):
    write_digits(tmp_path, digits)
    (tmp_path / "notes.txt").write_text("no picture")
    ready(tmp_path)
    assert capsys.readouterr().out == f"{tmp_path}: 40 pictures; left out: 1 .txt\n"


def test_deep_pictures_are_scaled_by_their_range(tmp_path):
    levels = np.linspace(0, 1, 64).reshape(8, 8)
    Image.fromarray((levels * 65535).astype(np.uint16)).save(tmp_path / "16.png")
    Image.fromarray((levels * (2**31 - 1)).astype(np.int32)).save(tmp_path / "32.tif")
    Image.fromarray(levels.astype(np.float32)).save(tmp_path / "unit.tif")
    Image.fromarray((levels * 255).astype(np.float32)).save(tmp_path / "bytes.tif")
    for name in ("16.png", "32.tif", "unit.tif", "bytes.tif"):
        read = read_picture(tmp_path / name, (1, 8, 8))[0].numpy()
        assert np.abs(read - levels * 255).max() <= 1, name
    for name, values in {"negative": levels - 0.5, "large": levels * 1000, "nan": levels * np.nan}.items():
        Image.fromarray(values.astype(np.float32)).save(tmp_path / f"{name}.tif")
        with pytest.raises(UserError, match=rf"{name}\.tif \(its values reach from"):
            read_picture(tmp_path / f"{name}.tif", (1, 8, 8))


def test_a_transparent_picture_is_laid_on_white(tmp_path):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[...] = [255, 0, 255, 0]
    rgba[2:6, 2:6] = [0, 255, 0, 255]
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(rgba[..., [1, 3]]).save(tmp_path / "la.png")
    palette = Image.fromarray(rgba[..., :3]).quantize(4)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 0)))
    for name in ("rgba", "la", "p"):
        read = read_picture(tmp_path / f"{name}.png", (3, 8, 8))
        assert read[:, 0, 0].tolist() == [255, 255, 255], name
        assert read[1, 3, 3] == 255, name


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=f"there is no folder {tmp_path / 'nowhere'}: set data.root"):
        ready(tmp_path / "nowhere")


def test_a_folder_without_pictures_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UserError, match=f"there is no picture in {tmp_path}"):
        ready(tmp_path)


def test_fewer_pictures_than_a_batch_are_refused(tmp_path, digits):
    write_digits(tmp_path, digits, count=10)
    with pytest.raises(UserError, match=r"data.batch_size=9 is more than the 8 images for training"):
        ready(tmp_path, batch_size=9)


def test_pictures_that_cannot_be_used_are_left_out_and_counted(tmp_path, digits, capsys):
    write_digits(tmp_path, digits)
    as_they_were = as_set(*everything(ready(tmp_path)))
    good = (tmp_path / "0" / "00003.png").read_bytes()
    folder = tmp_path / "0"
    for name, content in {
        "empty.png": b"",
        "cut.png": good[: len(good) // 2],
        "text.png": b"no picture",
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "bad.png": good[:40] + b"\0\0" + good[42:],
        "huge.png": good[:16] + struct.pack(">II", 20_000, 20_000) + good[24:],
        "large.png": good[:16] + struct.pack(">II", 10_000, 10_000) + good[24:],
        "no width.png": good[:16] + bytes(4) + good[20:],
    }.items():
        (folder / name).write_bytes(content)
    assert as_set(*everything(ready(tmp_path))) == as_they_were
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path}: 40 pictures; left out: 8 that cannot be used, such as {folder / 'bad.png'}: ")
    assert out.count("\n") == 1
    for path in tmp_path.glob("*/0*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"there is no picture in .* that can be read. left out: 8 that"):
        ready(tmp_path)


@pytest.mark.parametrize("cache", [None, "cache"])
def test_too_few_pictures_are_refused(tmp_path, cache):
    for name in ("a.png", "b.png"):
        Image.new("L", (28, 28)).save(tmp_path / name)
    with pytest.raises(UserError, match="has 2 pictures for training, validation and test: add some"):
        ready(tmp_path, cache=cache and str(tmp_path / cache))


def test_a_large_picture_is_used(tmp_path):
    Image.new("L", (2500, 2000), 200).save(tmp_path / "a.png")
    assert read_pictures(tmp_path, (1, 8, 8), lambda picture: picture.resize((8, 8))).images.unique().tolist() == [200]


@pytest.mark.parametrize(
    "settings",
    [{"image_channels": 2}, {"validation_fraction": 0.0}, {"validation_fraction": 0.5, "test_fraction": 0.5}],
)
def test_invalid_settings_are_refused(tmp_path, settings):
    with pytest.raises(ValueError, match=r"image_channels=2|must be above 0, and below 1 together"):
        ImageFolder(tmp_path, **settings)
