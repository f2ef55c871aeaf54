import torch

from ddpm.metrics.cache import cached, digest


class Maker:
    """Counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"a": torch.arange(3.0), "b": torch.tensor([[self.calls]])}


def test_a_result_is_made_once_for_a_key(tmp_path):
    make = Maker()
    first = cached(tmp_path / "cache", "things", ("x", "y"), make)
    again = cached(tmp_path / "cache", "things", ("x", "y"), make)
    assert make.calls == 1
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    cached(tmp_path / "cache", "things", ("x", "z"), make)
    assert make.calls == 2
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_nothing_is_stored_without_a_folder():
    make = Maker()
    for _ in range(2):
        cached(None, "things", ("x",), make)
    assert make.calls == 2


def test_a_damaged_file_is_replaced(tmp_path):
    """With any byte flipped, or a part cut off, the tensors are right or made again, never wrong."""
    make = Maker()
    right = cached(tmp_path, "things", ("x",), make)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    damaged = [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in range(len(whole))]
    for content in [b"", whole[:-4], whole[: len(whole) // 2], *damaged]:
        path.write_bytes(content)
        before = make.calls
        found = cached(tmp_path, "things", ("x",), make)
        assert found.keys() == right.keys()
        assert torch.equal(found["a"], right["a"])
        assert found["b"].item() == (1 if make.calls == before else make.calls)
    assert make.calls > len(damaged) / 2


def test_digest_is_of_shape_and_content():
    tensors = [torch.zeros(2, 3), torch.zeros(3, 2), torch.ones(2, 3)]
    assert len({digest(tensor) for tensor in tensors}) == 3
    assert digest(torch.arange(6).view(2, 3).T) == digest(torch.tensor([[0, 3], [1, 4], [2, 5]]))
