import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data import MNISTMini
from ddpm.metrics.samples_file import read_samples, seem_inverted

DIGITS = np.random.default_rng(0).integers(256, size=(4, 28, 28), dtype=np.uint8)
DIGITS[:, 0, :2] = (0, 255)  # floats made of them span their range


def is_digits(read):
    return read.shape == (4, 1, 28, 28) and torch.equal(read, torch.from_numpy(DIGITS)[:, None])


@pytest.mark.parametrize(
    "array",
    [
        DIGITS,
        DIGITS[:, None],
        DIGITS[..., None],
        DIGITS.astype(np.int64),
        DIGITS / 255,
        (DIGITS / 255).astype(np.float16),
        (DIGITS / 127.5 - 1).astype(np.float32),
        DIGITS / 127.5 - 1 + 5e-4,
    ],
    ids=["N28", "N1", "N281", "int64", "unit", "float16", "signed", "rounding"],
)
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_arrays(tmp_path, array, name):
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, array)
    assert is_digits(read_samples(path))


def test_named_array_of_several(tmp_path):
    np.savez(tmp_path / "a.npz", labels=np.zeros(4), images=DIGITS)
    assert is_digits(read_samples(tmp_path / "a.npz"))
    np.savez(tmp_path / "a.npz", x=DIGITS)
    assert is_digits(read_samples(tmp_path / "a.npz"))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_folder_of_pngs_in_the_order_of_their_paths(tmp_path, mode):
    for name, digit in zip(("a/2.png", "a/3.png", "b/1.png", "c.png"), DIGITS, strict=True):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(digit).convert(mode).save(path)
    (tmp_path / "notes.txt").write_text("not an image")
    assert is_digits(read_samples(tmp_path))


@pytest.mark.parametrize("name", ["samples-idx3-ubyte", "samples-idx3-ubyte.gz"])
def test_idx(tmp_path, name):
    data = struct.pack(">4B3I", 0, 0, 8, 3, *DIGITS.shape) + DIGITS.tobytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert is_digits(read_samples(tmp_path / name))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 32, 32), np.uint8), "shape"),
        (np.zeros((28, 28), np.uint8), "shape"),
        (np.zeros((4, 3, 28, 28), np.uint8), "shape"),
        (DIGITS[:0], "shape"),
        (DIGITS // 128, "0 and 1 alone"),
        (DIGITS.astype(np.int32) - 1, "from -1 to 254"),
        (DIGITS.astype(np.float32), "floats from 0 to 255"),
        (DIGITS / 255 - 0.1, "neither"),
        (DIGITS / 127.5 - 1.1, "clamp"),
        (np.where(DIGITS == 0, np.nan, DIGITS / 255), "nan"),
        (DIGITS > 100, "bool"),
        (DIGITS.astype(object), "no NumPy file of plain numbers"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        read_samples(tmp_path / "a.npy")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        read_samples(tmp_path / "absent")
    with pytest.raises(ValueError, match="there is no picture"):
        read_samples(tmp_path)
    np.savez(tmp_path / "a.npz", x=DIGITS, y=DIGITS)
    with pytest.raises(ValueError, match="call that of the digits images"):
        read_samples(tmp_path / "a.npz")
    for name in ("b.npz", "b.npy"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
        with pytest.raises(ValueError, match="damaged"):
            read_samples(tmp_path / name)
    (tmp_path / "c.bin").write_bytes(b"whatever")
    with pytest.raises(ValueError, match="no IDX file"):
        read_samples(tmp_path / "c.bin")
    Image.new("L", (20, 28)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="20×28 pixels"):
        read_samples(tmp_path)
    with pytest.raises(ValueError, match="name the folder"):
        read_samples(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"whatever")
    with pytest.raises(ValueError, match="cannot read the picture"):
        read_samples(tmp_path)


def test_dark_digits_on_white_seem_inverted():
    data = MNISTMini()
    data.setup()
    digits = data.split("test").images
    assert not seem_inverted(digits)
    assert seem_inverted(255 - digits)
