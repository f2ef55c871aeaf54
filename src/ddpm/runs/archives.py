"""Check a file of torch.save before torch reads it: it must be complete, and ask for no more memory than its size.

Such a file is a zip archive of uncompressed records: a pickle, `data.pkl`, and one record for each storage of tensors.
"""

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

MAX_DIRECTORY = 8 * 2**20
"""bytes of the archive's directory: about 100,000 records"""
MAX_PICKLE = 2**20, 2**10
"""bytes of data.pkl: for the config and the rest, and for each record"""
MAX_DEPTH = 100
"""of nested tuples; Python would crash when it hashes a tuple of depth 100,000"""
FOLDER = 0x10
"""in a record's external attributes: the record is a folder"""
ENCRYPTED = 0x1
"""in a record's flags"""
INSTRUCTIONS = re.compile(
    "PROTO|STOP|MARK|GLOBAL|REDUCE|BUILD|APPENDS?|SETITEMS?|TUPLE[123]?|NONE|NEWFALSE|NEWTRUE|EMPTY_(TUPLE|LIST|DICT|SET)"
    "|BINPERSID|BININT[12]?|BINFLOAT|LONG1|BINUNICODE|SHORT_BINSTRING|(LONG_)?BIN(GET|PUT)"
)
"""of a pickle that torch.save writes"""
STORAGE = re.compile(r"torch\.(storage\.)?(\w+Storage)")
ITEM_SIZES = {"Double": 8, "Long": 8, "ComplexFloat": 8, "ComplexDouble": 16, "Float": 4, "Int": 4, "QInt32": 4}
ITEM_SIZES |= dict.fromkeys(("Half", "BFloat16", "Short"), 2)  # all others have elements of 1 byte
PLAIN = re.compile(r"torch\.([a-z]+\d+\w*|device|Size|bool)|(__builtin__|builtins)\.(set|complex)")
"""types of plain data"""


def check_records(path: Path) -> None:
    """Check the archive's directory, its checksums, and what its pickle would build.

    Raises:
        OSError: the file cannot be read.
        pickle.UnpicklingError: the pickle names other objects than tensors and plain data.
        Exception: the file is damaged. Readers of zip archives and pickles raise many types.
    """
    if path.exists() and not path.is_file():  # reading a pipe may never end
        raise ValueError("it is not a file")
    with _Reader(path) as file:
        if file.read(4) != b"PK\x03\x04":
            raise ValueError("it is not a checkpoint: not a file that torch.save writes")
        with zipfile.ZipFile(file) as archive:
            sizes = _check_directory(archive.infolist(), path.stat().st_size)
            if broken := archive.testzip():
                raise ValueError(f"the checksum of its record {broken} is wrong")
            (name,) = (name for name in sizes if name.endswith("data.pkl"))
            if sizes[name] > MAX_PICKLE[0] + MAX_PICKLE[1] * len(sizes):
                raise ValueError(f"its record {name} is too large")
            data = archive.read(name)
    _check_instructions(data)
    folder = name.removesuffix("data.pkl") + "data/"
    _Outline(data, {name.removeprefix(folder): size for name, size in sizes.items()}).load()


class _Reader(io.FileIO):
    """A file that refuses to be read in large pieces, as zipfile reads the directory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise ValueError("the directory of its records is too large")
        return super().read(size)


def _check_directory(records: list[zipfile.ZipInfo], size: int) -> dict[str, int]:
    """Return the size of each record. `size` is the file's.

    Raises:
        ValueError: a record that torch.save does not write.
    """
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & ENCRYPTED:
            raise ValueError(f"its record {record.filename} is compressed")
        if record.external_attr & FOLDER:  # torch would leave the record's memory uninitialised
            raise ValueError(f"the type of its record {record.filename} is wrong")
        if record.compress_size != record.file_size:
            raise ValueError(f"the size of its record {record.filename} is wrong")
    sizes = {record.filename: record.file_size for record in records}
    if len(sizes) < len(records) or sum(sizes.values()) > size:
        raise ValueError("its records overlap")
    return sizes


def _check_instructions(data: bytes) -> None:
    """Check that the pickle has only instructions that torch.save writes, and does not nest tuples deeply.

    Raises:
        pickle.UnpicklingError: it has an instruction that makes another object.
        ValueError: it is damaged.
    """
    mark = -1
    stack: list[int] = []  # how deeply tuples are nested in each value
    memo: dict[Any, int] = {}
    for instruction, argument, _ in pickletools.genops(data):
        name, before = instruction.name, instruction.stack_before
        if not INSTRUCTIONS.fullmatch(name):
            raise pickle.UnpicklingError(f"it has the instruction {name}")
        if isinstance(argument, int) and abs(argument) >= (len(data) if name == "LONG_BINPUT" else 2**63):
            raise ValueError("its pickle has a number that is too large")  # Python makes a table with this many places
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
            continue
        taken = []
        if pickletools.stackslice in before:
            while (depth := stack.pop()) != mark:
                taken.append(depth)
        taken += [stack.pop() for kind in before if kind not in (pickletools.stackslice, pickletools.markobject)]
        depth = max(taken, default=0) + name.startswith("TUPLE")
        if depth > MAX_DEPTH:
            raise ValueError("its pickle is nested too deeply")
        if name in ("BINGET", "LONG_BINGET"):
            depth = memo[argument]
        if instruction.stack_after:
            stack.append(mark if name == "MARK" else depth)


class _Storage(NamedTuple):
    nbytes: int
    itemsize: int


class _Outline(pickle.Unpickler):
    """Unpickles all but the tensors. Raises a ValueError for tensors that are larger than their records."""

    def __init__(self, data: bytes, sizes: Mapping[str, int]):
        super().__init__(io.BytesIO(data))
        self.sizes = sizes

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "collections.OrderedDict": OrderedDict,
            "collections.Counter": Counter,
            "_codecs.encode": _encode,
            "torch._utils._rebuild_tensor_v2": _check_tensor,
            "torch._utils._rebuild_tensor_v3": _check_tensor,
            "torch._utils._rebuild_parameter": _ignore,
        }
        full = f"{module}.{name}"
        if storage := STORAGE.fullmatch(full):
            return storage[2]
        if full not in known and not PLAIN.fullmatch(full):
            raise pickle.UnpicklingError(f"it names {full}")
        return known.get(full, _ignore)

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, numel = pid
        itemsize = ITEM_SIZES.get(kind.removesuffix("Storage"), 1)
        if numel * itemsize != self.sizes[key]:
            raise ValueError(f"the size of its record data/{key} is wrong")
        return _Storage(self.sizes[key], itemsize)


def _check_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *others: Any) -> None:
    numel = math.prod(shape)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    needed = max(numel, last + 1) if numel else 0
    if min([offset, *shape, *strides]) < 0 or needed * storage.itemsize > storage.nbytes:
        raise ValueError(f"a tensor of shape {list(shape)[:8]} is larger than its record")


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("its pickle has bytes in a wrong encoding")
    return text.encode(encoding)


def _ignore(*arguments: Any) -> None:
    """Stand for a type of plain data."""
