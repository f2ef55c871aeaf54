import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data import ImageFolder
from ddpm.data.picture_cache import ImageRows

COUNT = 30


@pytest.fixture
def pictures(tmp_path):
    """Random pictures in two folders, one that is damaged, and a text."""
    write_pictures(tmp_path / "pictures", COUNT)
    (tmp_path / "pictures" / "a" / "damaged.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def write_pictures(folder, count, side=8):
    draws = np.random.default_rng(0)
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(256, size=(side, side, 3), dtype=np.uint8)).save(path)


def ready(folder, cache, **settings):
    return ImageFolder(folder, **{"batch_size": 4, "image_size": 8, "cache": cache} | settings).ready()


def splits(data):
    return [data.split(name) for name in ("train", "validation", "test")]


def same(data, other):
    return all(map(torch.equal, sum(splits(data), ()), sum(splits(other), ())))


def only_file(cache):
    (path,) = cache.glob("*.safetensors")
    return path


def test_the_cache_holds_the_splits_that_are_decoded_without_it(tmp_path, pictures, capsys):
    plain = ready(pictures, None)
    note = "left out: 1 .txt, 1 that cannot be used, such as"
    assert note in capsys.readouterr().out
    for _ in range(2):  # written, then read
        assert same(ready(pictures, tmp_path / "cache"), plain)
        out = capsys.readouterr().out
        assert out.startswith(f"{pictures}: {COUNT} pictures, kept in {only_file(tmp_path / 'cache')}; {note}")
        assert out.count("\n") == 1
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".lock", ".safetensors"]


def test_a_relative_folder(tmp_path, pictures, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert same(ready("pictures", "some/cache"), ready(pictures, None))
    assert f"kept in {only_file(Path('some/cache'))}" in capsys.readouterr().out


def test_a_later_start_decodes_nothing(tmp_path, pictures):
    first = ready(pictures, tmp_path / "cache")
    for path in pictures.glob("*/0*.png"):
        times, size = path.stat(), path.stat().st_size
        path.write_bytes(bytes(size))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert same(ready(pictures, tmp_path / "cache"), first)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_from_the_file_are_those_from_memory(tmp_path, pictures, num_workers):
    plain, cached = ready(pictures, None), ready(pictures, tmp_path / "cache", num_workers=num_workers)
    only_file(tmp_path / "cache").unlink()  # as if another process replaced it: this one keeps the file open
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        pairs = zip(islice(getattr(plain, loader)(), 14), islice(getattr(cached, loader)(), 14), strict=True)
        assert all(torch.equal(one, other) for batches in pairs for one, other in zip(*batches, strict=True))


def test_reading_batches_goes_without_the_mapped_tensor(tmp_path, pictures):
    rows = ready(pictures, tmp_path / "cache").dataset_of("train")
    assert isinstance(rows, ImageRows)
    copied = pickle.loads(pickle.dumps(rows))  # as for a worker that is not forked
    for one, other in zip(
        copied.__getitems__(torch.tensor([3, 0])), rows.__getitems__(torch.tensor([3, 0])), strict=True
    ):
        assert torch.equal(one, other)
    on_device = ready(pictures, tmp_path / "cache", on_device=True).dataset_of("train")
    assert torch.equal(on_device.__getitems__(torch.tensor([3, 0]))[0], rows.__getitems__(torch.tensor([3, 0]))[0])


def rewritten(picture):
    Image.new("RGB", (8, 8), "red").save(picture)


def touched(picture):
    os.utime(picture, (1, 1))


CHANGES = {
    "written again": lambda picture: rewritten(picture),
    "another time": lambda picture: touched(picture),
    "removed": lambda picture: picture.unlink(),
    "renamed": lambda picture: picture.rename(picture.with_name("z.png")),
    "moved to another label": lambda picture: picture.rename(picture.parents[1] / "b" / "z.png"),
    "one more": lambda picture: rewritten(picture.with_name("z.png")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_folder_is_read_again(tmp_path, pictures, change):
    ready(pictures, tmp_path / "cache")
    before = only_file(tmp_path / "cache").stat()
    change(pictures / "a" / "00004.png")
    assert same(ready(pictures, tmp_path / "cache"), ready(pictures, None))
    assert not os.path.samestat(only_file(tmp_path / "cache").stat(), before)  # and only one file is kept


def test_other_settings_have_a_file_of_their_own(tmp_path, pictures):
    for count, settings in enumerate(
        [{}, {"image_size": 4}, {"image_channels": 1}, {"split_seed": 1}, {"test_fraction": 0.3}], 1
    ):
        assert same(ready(pictures, tmp_path / "cache", **settings), ready(pictures, None, **settings))
        assert len(list((tmp_path / "cache").glob("*.safetensors"))) == count
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")}
    ready(pictures, tmp_path / "cache", batch_size=2, seed=7)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")} == first


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "header length": lambda data: b"\xff" * 8 + data[8:],
    "header": lambda data: flipped(data, 60),
    "labels": lambda data: flipped(data, 8 + int.from_bytes(data[:8], "little") + 10),
    "last pixel": lambda data: flipped(data, len(data) - 1),
    "a hole": lambda data: data[:-4000] + bytes(2000) + data[-2000:],
    "no cache": lambda data: b"text" * 500,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_written_again(tmp_path, pictures, damage):
    ready(pictures, tmp_path / "cache")
    path = only_file(tmp_path / "cache")
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert same(ready(pictures, tmp_path / "cache"), ready(pictures, None))
    assert path.read_bytes() == good


def test_pictures_stay_in_memory_where_no_file_can_be_written(tmp_path, pictures, capsys):
    plain = ready(pictures, None)
    (tmp_path / "file").write_text("")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    for cache, limit in [("/proc/nowhere", limits[0]), (tmp_path / "file", limits[0]), (tmp_path / "full", 2000)]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            data = ready(pictures, cache)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert same(data, plain)
        assert f"data.cache={cache} cannot be used (" in capsys.readouterr().out
    assert [path.suffix for path in (tmp_path / "full").iterdir()] == [".lock"]


def test_a_cache_inside_the_folder_is_no_part_of_it(tmp_path, pictures, capsys):
    for _ in range(2):
        ready(pictures, pictures / "cache")
        assert "left out: 1 .txt, 1 that" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_and_two_writers_agree(tmp_path):
    write_pictures(tmp_path / "pictures", 600, side=32)
    cache = tmp_path / "cache"
    code = (
        "import sys; from ddpm.data import ImageFolder\n"
        "data = ImageFolder(sys.argv[1], image_size=32, cache=sys.argv[2]).ready()\n"
        "print(data.split('train').images.long().sum().item())"
    )

    def start():
        command = [sys.executable, "-c", code, str(tmp_path / "pictures"), str(cache)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    killed = start()
    while not list(cache.glob(".*.tmp")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list(cache.glob("*.safetensors"))

    answers = [process.communicate()[0] for process in [start(), start()]]
    assert len({answer.splitlines()[-1] for answer in answers}) == 1
    assert len(answers[0].splitlines()) + len(answers[1].splitlines()) <= 5  # one may say that it waited
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".safetensors"]
