"""The resolved config in a run's directory."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from ddpm.config import is_below, leaves
from ddpm.errors import UserError
from ddpm.runs.files import read_yaml, replace_file


def write_config(directory: Path, config: Mapping[str, Any]) -> str:
    """Write config.yaml and return its text."""
    text = yaml.dump(dict(config), Dumper=_WithoutAliases, sort_keys=False, allow_unicode=True)
    replace_file(directory / "config.yaml", text.encode())
    return text


class _WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def check_same_config(directory: Path, config: Mapping[str, Any], not_identity: Collection[str]) -> None:
    """Raise UserError with the difference if the directory holds a run with another config.

    The keys in `not_identity` and all keys below them may differ. So may the folders in `paths`, also where other
    values contain them.
    """
    path = directory / "config.yaml"
    if not path.exists():
        return
    saved = read_yaml(path)
    if not saved:
        raise UserError(f"{path} is damaged: remove it to continue the run from its checkpoints.")
    old, new = comparable(saved), comparable(config)
    lines = [
        f"  {key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
        for key in sorted(old.keys() | new.keys())
        if repr(old.get(key)) != repr(new.get(key)) and not is_below(key, not_identity)  # 1 is not 1.0
    ]
    if lines:
        difference = "\n".join(lines)
        raise UserError(
            f"{directory} holds a run with another config:\n{difference}\n"
            "Use the old settings to continue that run, or restart=true to move it aside and start from step 0."
        )


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of a config by dotted key, with the folders of `paths` replaced by their names.

    So a run that was moved still has the same config.
    """
    paths = config.get("paths")
    items = paths.items() if isinstance(paths, Mapping) else ()
    folders = {str(folder): name for name, folder in items if folder and isinstance(folder, (str, Path))}
    values = dict(leaves(config))
    for folder in sorted(folders, key=len, reverse=True):
        for key, value in values.items():
            if isinstance(value, str) and (value == folder or value.startswith(f"{folder}/")):
                values[key] = f"<{folders[folder]}>{value.removeprefix(folder)}"
    return values
