"""Checkpoints on disk: found by what the user typed after `ckpt=`, read without running code from them."""

import contextlib
import pickle
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from ddpm.errors import UserError

NAMES = ("best", "last")  # in the order of preference
FOLDER = 0x10  # in a zip record's external attributes


def find_checkpoint(spec: str) -> Path:
    """The file that `ckpt=spec` means: a checkpoint, a run (its best, else its last), RUN/best or RUN/last.

    Raises UserError, naming up to five runs nearby, where there is none.
    """
    path = Path(spec).expanduser()
    if not spec.strip():
        raise UserError("ckpt is empty: give a checkpoint file or a run's directory")
    if path.is_file():
        return path
    names: tuple[str, ...]
    if path.is_dir():
        run, names = path, NAMES
        candidates = [folder / f"{name}.ckpt" for name in NAMES for folder in (run / "checkpoints", run)]
    else:
        run, names = path.parent, (path.name,) if path.name in NAMES else ()
        candidates = [run / "checkpoints" / f"{name}.ckpt" for name in names]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if run.is_dir() and names:
        problem = f"the run {run} has no checkpoint {' or '.join(f'checkpoints/{name}.ckpt' for name in names)}"
    else:
        problem = f"there is no checkpoint or run at {path}"
    nearby = _runs_near(path)
    raise UserError(problem + (f"; nearby: {', '.join(map(str, nearby))}" if nearby else ""))


def _runs_near(path: Path, limit: int = 5) -> list[Path]:
    """Runs with a checkpoint, newest first, under the nearest folder above `path` that exists.

    Under outputs/ where that is the current folder or one above it, which may hold anything.
    """
    folder = next(parent for parent in (path, *path.parents) if parent.is_dir())
    if Path.cwd().is_relative_to(folder.resolve()):
        folder = Path("outputs")
    files = [file for depth in range(4) for file in folder.glob("*/" * depth + "checkpoints/*.ckpt")]
    newest_first = sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)
    return list(dict.fromkeys(file.parent.parent for file in newest_first))[:limit]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours as plain data, tensors on the CPU.

    Its resolved config is `["hyper_parameters"]["config"]`. Raises UserError for a file that is damaged,
    foreign, or holds more than tensors and plain data: unpickling that could run code.
    """
    import torch

    check_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds Python objects beside tensors and plain data. It was not written by ddpm, and "
            "is not loaded because it could run code"
        ) from error
    except Exception as error:
        raise UserError(f"{path} is damaged or not a checkpoint: {_first_line(error)}") from error
    parameters = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    config = parameters.get("config") if isinstance(parameters, dict) else None
    if not isinstance(config, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of ddpm: it does not hold the config of its model")
    return checkpoint


def check_archive(path: Path) -> None:
    """Raise UserError unless the file is a complete zip archive that torch can open and whose checksums are right.

    The checksums cover the records. For the archive's directory two more checks are needed: torch must read it
    (zipfile tolerates sizes and counts that torch refuses), and no record may be marked as a folder (torch would
    then leave the record's memory uninitialised).
    """
    import torch

    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        if not is_zip:
            raise UserError(f"{path} is not a checkpoint: not a file that torch.save writes")
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            folders = [record.filename for record in archive.infolist() if record.external_attr & FOLDER]
        if broken or folders:
            raise UserError(
                f"{path} is damaged: the checksum or the type of its record {broken or folders[0]} is wrong"
            )
        with contextlib.suppress(pickle.UnpicklingError):  # objects that torch does not load are foreign, not damage
            torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged directory makes zipfile and torch raise many types
        raise UserError(f"{path} is damaged, it may be incomplete: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def trusted_targets(conf_dirs: Iterable[Path]) -> set[str]:
    """Every `_target_` that occurs in a YAML of the user's own config path: what a checkpoint may name."""
    found: set[str] = set()
    for folder in conf_dirs:
        for path in sorted(folder.rglob("*.yaml")):
            try:
                documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
            except (yaml.YAMLError, UnicodeDecodeError):  # Hydra will say so if it is used
                continue
            found.update(value for key, value in _leaves(documents) if key == "_target_" and isinstance(value, str))
    return found


def check_targets(node: Any, trusted: Collection[str]) -> None:
    """Raise UserError if a checkpoint's config would build anything but the `trusted` targets.

    It is resolved when it is stored. An interpolation in it is refused too: it could become a target later.
    """
    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    for key, value in _leaves(plain):
        if key == "_target_" and value not in trusted:
            raise UserError(
                f"the checkpoint asks for {value!r}, which no YAML of your configs names as a _target_. "
                "If you trust it, add it to a YAML of yours and pass its folder with --config-dir"
            )
        if isinstance(value, str) and "${" in value:
            raise UserError(f"the checkpoint's config holds an unresolved value, {key}={value!r}, and is not trusted")


def _leaves(node: Any, key: Any = None) -> Iterable[tuple[Any, Any]]:
    """(key, value) of all that is in nested dicts and lists; a list's values have the list's key."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _leaves(child, name)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from _leaves(child, key)
    else:
        yield key, node
