"""Damage to a real checkpoint is found, or it changes nothing that is loaded."""

import io
import zipfile
from pathlib import Path

import pytest
import torch

from ddpm.errors import UserError
from ddpm.runs.checkpoints import check_archive

CHECKPOINT = {
    "state_dict": {"weight": torch.arange(40.0), "steps": torch.arange(5)},
    "global_step": 3,
    "hyper_parameters": {"config": {"seed": 0}},
}


@pytest.fixture(scope="module")
def saved() -> bytes:
    """The bytes that torch.save writes for CHECKPOINT, 2 kB."""
    file = io.BytesIO()
    torch.save(CHECKPOINT, file)
    return file.getvalue()


def is_intact(path: Path, data: bytes | bytearray) -> bool:
    """Whether check_archive accepts the file with this content."""
    path.write_bytes(data)
    try:
        check_archive(path)
    except UserError:
        return False
    return True


def test_a_flip_in_any_byte_is_found_or_harmless(saved: bytes, tmp_path: Path) -> None:
    """Flip all bits of a byte; in the archive's directory also the one bit that marks a record as a folder."""
    path = tmp_path / "last.ckpt"
    assert is_intact(path, saved)
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    in_records = {saved.index(data) + i for data in records.values() if len(data) > 2 for i in range(len(data))}
    others = set(range(0, directory, 7)) - in_records  # local headers, padding
    flips = [(at, 0xFF) for at in [*sorted(in_records | others), *range(directory, len(saved))]]
    flips += [(at, 0x10) for at in range(directory, len(saved))]
    accepted = []
    for at, mask in flips:
        damaged = bytearray(saved)
        damaged[at] ^= mask
        if is_intact(path, damaged):
            accepted.append(at)
            assert str(torch.load(path, weights_only=True)) == str(CHECKPOINT), f"byte {at} ^ {mask:#x}"
    assert in_records.isdisjoint(accepted)
    assert len(in_records) > 500  # the pickle and both tensors


def test_a_file_cut_at_any_length_is_found(saved: bytes, tmp_path: Path) -> None:
    accepted = [n for n in range(0, len(saved), 41) if is_intact(tmp_path / "last.ckpt", saved[:n])]
    assert accepted == []
