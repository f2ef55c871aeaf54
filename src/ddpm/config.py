"""Where the config tree lies, and how a part of it becomes an object. Imports no torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from ddpm.errors import UserError


def conf_dir() -> Path:
    """The config tree: `conf/` of the clone, or the copy of it that the wheel carries as `ddpm/conf`."""
    package = Path(__file__).resolve().parent
    in_wheel = package / "conf"
    # A clone has no src/ddpm/conf, so this cannot hide the tree that a developer edits. The other order would
    # be wrong: two folders above an installed package may be anybody's conf/.
    return in_wheel if in_wheel.is_dir() else package.parents[1] / "conf"


def build(node: DictConfig | dict[str, Any], **kwargs: Any) -> Any:
    """Instantiates a config node; `kwargs` are arguments that are only known at run time.

    The target gets plain lists and dicts: what it keeps may enter a checkpoint, which holds no types of OmegaConf.

    Raises:
        UserError: the target refused a setting (a ValueError or UserError), got one of a wrong type, or is not to be
            found. Any other exception passes as Hydra raised it.
    """
    try:
        return instantiate(node, _convert_="all", **kwargs)
    except (InstantiationException, ValueError) as error:
        message = _users_mistake(error)
        if message is None:
            raise
        key = node._get_full_key(None) if isinstance(node, DictConfig) else ""
        raise UserError(f"{message}\n(from `{key}` in the config)" if key else message) from error


def leaves(node: Any, *, into_lists: bool = False, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything in nested dicts.

    Args:
        node: plain data, no OmegaConf.
        into_lists: go into lists too. Their items have the key of the list.
        key: prefix of all keys.
    """
    if isinstance(node, Mapping) and node:
        for name, child in node.items():
            yield from leaves(child, into_lists=into_lists, key=f"{key}.{name}" if key else str(name))
    elif into_lists and isinstance(node, (list, tuple)):
        for child in node:
            yield from leaves(child, into_lists=True, key=key)
    else:
        yield key, node


def _users_mistake(error: BaseException) -> str | None:
    """What is to be said of an error that a user's config makes; None of one in the code. Hydra wraps once a call."""
    cause: BaseException | None = error
    while isinstance(cause, InstantiationException):
        error, cause = cause, cause.__cause__
    if isinstance(cause, (ValueError, UserError)):
        return str(cause)
    first = str(error).splitlines()[0]
    if isinstance(cause, TypeError):
        return f"{first}\n{cause} (DDPM_DEBUG=1 shows where)"
    if isinstance(cause, ImportError) or first.startswith("Error locating target"):
        return f"{first.partition(', see')[0]}: is its folder on PYTHONPATH? (DDPM_DEBUG=1 shows more)"
    return None
