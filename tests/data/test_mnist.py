import gzip
import hashlib
import http.server
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision.datasets

import ddpm.data
from ddpm.data import MNIST, FashionMNIST, MNISTMini
from ddpm.data.idx import read_idx, write_idx
from ddpm.data.mnist import FILES
from ddpm.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_mnist_mini.py"
EMBEDDED = Path(ddpm.data.__file__).parent / "mnist_mini"


def ready(data):
    data.prepare_data()
    data.setup("fit")
    return data


def write_small(folder, gzipped=False):
    """Twelve training and three test images in the files of MNIST."""
    folder.mkdir(parents=True)
    for name in FILES:
        num_images = 12 if name.startswith("train") else 3
        shape = (num_images, 28, 28) if "images" in name else (num_images,)
        path = folder / f"{name}.gz"
        write_idx(path, torch.randint(256, shape, dtype=torch.uint8))
        if not gzipped:
            (folder / name).write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server on this machine from which torchvision downloads a small Fashion-MNIST."""
    folder = tmp_path / "mirror"
    write_small(folder, gzipped=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever).start()
    md5s = [(f"{name}.gz", hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest()) for name in FILES]
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", md5s)
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    yield folder
    server.shutdown()
    server.server_close()


def test_mnist_is_the_official_split(real_mnist):
    data = ready(MNIST(real_mnist))
    for name, size in (("train", 55_000), ("validation", 5_000), ("test", 10_000)):
        images, labels = data.split(name)
        assert images.dtype == torch.uint8
        assert images.shape == (size, *data.image_shape)
        assert labels.dtype == torch.int64
        assert labels.shape == (size,)
    training = torchvision.datasets.MNIST(real_mnist, train=True)
    assert torch.equal(torch.cat([data.split("train").images, data.split("validation").images])[:, 0], training.data)
    assert torch.equal(torch.cat([data.split("train").labels, data.split("validation").labels]), training.targets)
    test = torchvision.datasets.MNIST(real_mnist, train=False)
    assert torch.equal(data.split("test").images[:, 0], test.data)
    assert torch.equal(data.split("test").labels, test.targets)


def test_the_mini_set_is_the_first_images_of_each_digit(real_mnist):
    mini, whole = ready(MNISTMini()), ready(MNIST(real_mnist))
    assert [len(mini.split(name).images) for name in ("train", "validation", "test")] == [9000, 1000, 2000]
    for names, count in ((("train", "validation"), 1000), (("test",), 200)):
        images, labels = (torch.cat(parts) for parts in zip(*map(mini.split, names), strict=True))
        all_images, all_labels = (torch.cat(parts) for parts in zip(*map(whole.split, names), strict=True))
        seen = [0] * 10
        first = []
        for i, digit in enumerate(all_labels.tolist()):
            seen[digit] += 1
            if seen[digit] <= count:
                first.append(i)
        # Validation has the last images of each digit, so the order is kept within each digit.
        mine, theirs = labels.argsort(stable=True), torch.tensor(first)[all_labels[first].argsort(stable=True)]
        assert torch.equal(images[mine], all_images[theirs])
        assert torch.equal(labels[mine], all_labels[theirs])


def test_the_script_makes_the_embedded_files(real_mnist, tmp_path):
    subprocess.run([sys.executable, SCRIPT, real_mnist, tmp_path], check=True, capture_output=True)
    for name in FILES:
        made, embedded = ((folder / f"{name}.gz").read_bytes() for folder in (tmp_path, EMBEDDED))
        # The packed bytes may differ between versions of zlib.
        assert gzip.decompress(made) == gzip.decompress(embedded)


def test_equal_arrays_give_equal_files(tmp_path):
    array = torch.arange(60, dtype=torch.uint8).view(3, 4, 5)
    write_idx(tmp_path / "a.gz", array)
    write_idx(tmp_path / "another name.gz", array)
    packed = (tmp_path / "a.gz").read_bytes()
    assert packed == (tmp_path / "another name.gz").read_bytes()
    assert packed[4:8] == b"\0\0\0\0"  # gzip's time stamp
    assert torch.equal(read_idx(tmp_path / "a.gz"), array)


def test_fashion_mnist_as_debian_packages_it(fashion_mnist):
    raw = fashion_mnist / "FashionMNIST" / "raw"
    data = ready(FashionMNIST(fashion_mnist))
    assert data.split("train").images.shape == (55_000, 1, 28, 28)
    assert torch.cat([data.split("train").labels, data.split("validation").labels]).bincount().tolist() == [6000] * 10
    assert data.split("test").labels.bincount().tolist() == [1000] * 10
    for name in FILES:  # torchvision reads the same from the unpacked files
        (raw / name).write_bytes(gzip.decompress((raw / f"{name}.gz").read_bytes()))
    theirs = torchvision.datasets.FashionMNIST(fashion_mnist, train=False)
    assert torch.equal(theirs.data, data.split("test").images[:, 0])
    assert torch.equal(theirs.targets, data.split("test").labels)


@pytest.mark.parametrize("gzipped", [False, True])
def test_existing_files_are_used_in_a_read_only_folder(tmp_path, gzipped):
    raw = tmp_path / "MNIST" / "raw"
    write_small(raw, gzipped)
    raw.chmod(0o500)
    data = ready(MNIST(tmp_path, batch_size=4, validation_size=2))
    assert [len(data.split(name).labels) for name in ("train", "validation", "test")] == [10, 2, 3]


def test_missing_data_is_downloaded_once(mirror, tmp_path):
    root = tmp_path / "new" / "root"
    data = ready(FashionMNIST(root, batch_size=4, validation_size=2))
    expected = read_idx(mirror / "t10k-images-idx3-ubyte.gz")
    assert torch.equal(data.split("test").images[:, 0], expected)
    assert sorted(p.name for p in root.rglob("*")) == sorted(["FashionMNIST", "raw", *FILES])  # nothing left over
    shutil.rmtree(mirror)
    ready(FashionMNIST(root, batch_size=4, validation_size=2))


def test_without_data_and_network_the_remedies_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # no server listens there
    with pytest.raises(UserError) as caught:
        MNIST(tmp_path).prepare_data()
    message = str(caught.value)
    for part in (str(tmp_path), "refused", "DDPM_DATA_DIR", "paths.data", "MNIST/raw", *FILES, "data=mnist_mini"):
        assert part in message
    assert len(message.splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_made_gives_the_same_message(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"(?s)Not a directory|File exists.*data=mnist_mini"):
        MNIST(tmp_path / "file").prepare_data()


RENAMED = {
    "by browsers": [
        "train-images-idx3-ubyte (1)",
        "train-labels-idx1-ubyte.1",
        "t10k-images-idx3-ubyte(2)",
        "T10K-labels",
    ],
    "by Kaggle": ["a/train-images.idx3-ubyte", "train-labels/train-labels-idx1-ubyte", "t10k-images", "b/test-l"],
    "with endings": ["train-images.gz", "train-labels.idx", "t10k-images-idx3-ubyte.gz.download", "t10k-labels.bin"],
}


@pytest.mark.parametrize("names", RENAMED.values(), ids=RENAMED.keys())
@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("folder", ["MNIST/raw", "MNIST"])
def test_renamed_files_are_recognised_by_their_content(tmp_path, names, gzipped, folder):
    write_small(tmp_path / "MNIST" / "raw", gzipped)
    expected = ready(MNIST(tmp_path, batch_size=4, validation_size=2))
    for old, new in zip(FILES, names, strict=True):
        target = tmp_path / folder / new
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tmp_path / "MNIST" / "raw" / (f"{old}.gz" if gzipped else old), tmp_path / "moved")
        shutil.move(tmp_path / "moved", target)
        (target.parent / "train.txt").write_text("train images")
    found = ready(MNIST(tmp_path, batch_size=4, validation_size=2))
    for name in ("train", "validation", "test"):
        assert all(map(torch.equal, found.split(name), expected.split(name)))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("train-labels-idx1-ubyte", (11,)),
        ("train-images-idx3-ubyte", (13, 28, 28)),
        ("t10k-labels-idx1-ubyte", (3, 1)),
        ("t10k-images-idx3-ubyte", (3, 784)),
        ("t10k-images-idx3-ubyte", (0, 28, 28)),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(tmp_path, name, shape):
    raw = tmp_path / "MNIST" / "raw"
    write_small(raw, gzipped=True)
    write_idx(raw / f"{name}.gz", torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"expected \[N, 28, 28\] images and as many labels") as caught:
        ready(MNIST(tmp_path, batch_size=4, validation_size=2))
    assert f"{raw / name}.gz holds {list(shape)}" in str(caught.value)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"<html>", lambda data: b""])
@pytest.mark.parametrize("gzipped", [False, True])
def test_a_damaged_file_is_named(tmp_path, damage, gzipped):
    raw = tmp_path / "MNIST" / "raw"
    write_small(raw, gzipped)
    path = raw / ("t10k-images-idx3-ubyte" + (".gz" if gzipped else ""))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{path} is no IDX file of bytes, or is damaged"):
        ready(MNIST(tmp_path, batch_size=4, validation_size=2))


@pytest.mark.parametrize("settings", [{"image_channels": 3}, {"image_size": 32}, {"image_size": [28, 32]}])
@pytest.mark.parametrize("data", [partial(MNIST, "nowhere"), MNISTMini])
def test_another_image_size_is_refused(data, settings):
    with pytest.raises(ValueError, match="image_channels=1 and image_size=28"):
        data(**settings)


@pytest.mark.parametrize("validation_size", [10_000, 20_000])
def test_a_validation_set_that_leaves_no_training_image_is_refused(validation_size):
    with pytest.raises(UserError, match="leaves no image of 10000 to train on"):
        ready(MNISTMini(validation_size=validation_size))


def test_the_validation_set_of_mnist_mini_has_equally_many_of_each_digit():
    data = ready(MNISTMini(validation_size=1000))
    assert data.split("validation").labels.bincount().tolist() == [100] * 10
    assert data.split("train").labels.bincount().tolist() == [900] * 10


def test_an_empty_validation_set_is_refused():
    with pytest.raises(ValueError, match="validation_size=0"):
        MNISTMini(validation_size=0)
