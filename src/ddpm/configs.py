"""Where the config tree lies, and how a part of it becomes an object. Imports no torch."""

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
        UserError: the target raised a ValueError (or a UserError), which is how the libraries here refuse a
            setting. Any other exception passes as Hydra raised it.
    """
    try:
        return instantiate(node, _convert_="all", **kwargs)
    except (InstantiationException, ValueError) as error:
        mistake = _users_mistake(error)
        if mistake is None:
            raise
        key = node._get_full_key(None) if isinstance(node, DictConfig) else ""
        raise UserError(f"{mistake}\n(from `{key}` in the config)" if key else str(mistake)) from error


def _users_mistake(error: BaseException | None) -> BaseException | None:
    """What the target raised, if it was a ValueError or a UserError: Hydra wraps it once a call."""
    while isinstance(error, InstantiationException):
        error = error.__cause__
    return error if isinstance(error, (ValueError, UserError)) else None
