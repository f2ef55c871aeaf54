import gzip
import io
import resource
import struct
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm.data import MNISTMini
from ddpm.metrics.samples_file import doubts
from ddpm.metrics.samples_file import read_samples as read_images

DIGITS = np.random.default_rng(0).integers(256, size=(4, 28, 28), dtype=np.uint8)
DIGITS[:, 0, :2] = (0, 255)  # floats made of them span their range


def read_samples(path):
    return read_images(path, (1, 28, 28))


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


def test_colour_images_of_any_size(tmp_path):
    colour = np.random.default_rng(0).integers(256, size=(4, 3, 6, 8), dtype=np.uint8)
    last = np.moveaxis(colour, 1, -1)
    np.save(tmp_path / "first.npy", colour)
    np.savez(tmp_path / "last.npz", last / 255)
    for index, image in enumerate(last):
        (tmp_path / "folder").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "folder" / f"{index}.png")
    for name in ("first.npy", "last.npz", "folder"):
        assert torch.equal(read_images(tmp_path / name, (3, 6, 8)), torch.from_numpy(colour)), name
    expected = r"\[4, 3, 6, 8\]: expected \[N, 1, 6, 8\] or \[N, 6, 8, 1\] or \[N, 6, 8\]"
    with pytest.raises(ValueError, match=expected):
        read_images(tmp_path / "first.npy", (1, 6, 8))
    with pytest.raises(ValueError, match="8×6 pixels: expected 6×8"):
        read_images(tmp_path / "folder", (3, 8, 6))


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
        (np.where(DIGITS == 0, np.inf, DIGITS / 255), "inf"),
        (DIGITS.astype(np.uint16) * 256, "from 0 to 65280"),
        (DIGITS.astype(np.int8), "from -128 to 127"),
        (DIGITS / 77 - 0.42, "clamp"),  # standardised: mean 0, standard deviation 1
        (DIGITS > 100, "bool"),
        (DIGITS.astype(np.complex64), "complex64"),
        (DIGITS.astype("m8[s]"), "timedelta64"),
        (DIGITS.astype(str), "<U"),
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
    with pytest.raises(ValueError, match="call the one with images 'images'"):
        read_samples(tmp_path / "a.npz")
    for name in ("b.npz", "b.npy"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
        with pytest.raises(ValueError, match="damaged"):
            read_samples(tmp_path / name)
    (tmp_path / "c.bin").write_bytes(b"whatever")
    with pytest.raises(ValueError, match="no IDX file"):
        read_samples(tmp_path / "c.bin")
    Image.new("L", (20, 28)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"can be read. left out: .*1 that cannot be used.*20×28 pixels"):
        read_samples(tmp_path)
    with pytest.raises(ValueError, match="name the folder"):
        read_samples(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"whatever")
    with pytest.raises(ValueError, match="cannot identify image file"):
        read_samples(tmp_path)


def test_digits_of_another_range_are_suspicious():
    data = MNISTMini()
    data.setup()
    digits = data.split("test").images
    assert doubts(digits) is None
    assert doubts(digits[:1]) is None
    assert "inverted" in doubts(255 - digits)
    assert "digits of about 127" in doubts(digits // 2)
    assert "backgrounds of about 128" in doubts(128 + digits // 2)


def test_a_header_that_promises_more_than_the_file_holds_costs_no_memory(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 28, 28)})
    (tmp_path / "a.npy").write_bytes(header.getvalue() + bytes(1000))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(2**24))  # 1,000 times as large as its packed form
    idx = struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 28, 28)
    (tmp_path / "a.idx").write_bytes(idx + bytes(1000))
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx + bytes(2**24)))
    tracemalloc.start()
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=r"is no (NumPy|IDX) file"):
            read_samples(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def good_file(name):
    """Returns the bytes of a file with digits."""
    content = io.BytesIO()
    if name.endswith(("png", "jpg")):
        Image.fromarray(DIGITS[0]).save(content, "PNG" if name == "a.png" else "JPEG")
    elif name == "a.npz":
        np.savez_compressed(content, labels=np.zeros(4), images=DIGITS)
    elif name == "a.npy":
        np.save(content, DIGITS)
    else:
        content.write(struct.pack(">4B3I", 0, 0, 8, 3, *DIGITS.shape) + DIGITS.tobytes())
    return gzip.compress(content.getvalue(), mtime=0) if name == "a.gz" else content.getvalue()


GOOD_FILES = {name: good_file(name) for name in ("a.png", "a.jpg", "a.npz", "a.npy", "a.idx", "a.gz")}
PLACES = st.one_of(st.integers(0, 40), st.integers(0, 4000))  # most of what matters is in the header
NEW_BYTES = st.one_of(st.binary(max_size=4), st.sampled_from([b"\xff" * 4, bytes(4)]))
EDITS = st.lists(st.tuples(PLACES, st.sampled_from([0, 1, 4, 10**6]), NEW_BYTES), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(sorted(GOOD_FILES)), EDITS)
def test_any_bytes_give_digits_or_one_line(name, edits):
    """Good files in which bytes are replaced, inserted or cut off."""
    content = bytearray(GOOD_FILES[name])
    for place, removed, new in edits:
        content[place : place + removed] = new
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            digits = read_samples(path.parent if name in ("a.png", "a.jpg") else path)
        except ValueError as error:
            message = str(error)
        else:
            message = folder
            assert digits.dtype == torch.uint8
            assert digits.shape[1:] == (1, 28, 28)
    assert folder in message
    assert "\n" not in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2**18  # KiB
