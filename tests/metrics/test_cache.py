import pytest
import torch

from ddpm.metrics.cache import cached, digest


class Maker:
    """Counts how often it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"a": torch.arange(3.0), "b": torch.tensor([[self.calls]])}


def test_made_once_for_a_key(tmp_path):
    make = Maker()
    first = cached(tmp_path / "cache", "things", ("x", "y"), make)
    again = cached(tmp_path / "cache", "things", ("x", "y"), make)
    assert make.calls == 1
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    cached(tmp_path / "cache", "things", ("x", "z"), make)
    assert make.calls == 2
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_nothing_is_kept_without_a_folder():
    make = Maker()
    for _ in range(2):
        cached(None, "things", ("x",), make)
    assert make.calls == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-4], lambda data: data[:-1] + b"\x55", lambda data: b""])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    make = Maker()
    cached(tmp_path, "things", ("x",), make)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert cached(tmp_path, "things", ("x",), make)["b"].item() == 2
    assert len(path.read_bytes()) == len(whole)
    cached(tmp_path, "things", ("x",), make)
    assert make.calls == 2


def test_digest_is_of_shape_and_content():
    tensors = [torch.zeros(2, 3), torch.zeros(3, 2), torch.ones(2, 3)]
    assert len({digest(tensor) for tensor in tensors}) == 3
    assert digest(torch.arange(6).view(2, 3).T) == digest(torch.tensor([[0, 3], [1, 4], [2, 5]]))
