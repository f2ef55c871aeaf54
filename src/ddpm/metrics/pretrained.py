"""Features of published networks for pictures: the InceptionV3 of the FID, and networks of timm such as DINOv2."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from ddpm.config import user_path
from ddpm.data.published import download_timeout
from ddpm.errors import install_hint


class Inception(nn.Module):
    """The 2,048 features of the published FID: InceptionV3 as converted from TensorFlow by torch-fidelity.

    The network scales uint8 pictures of any size to 299×299, as torch-fidelity and the first implementation do.

    Args:
        weights: a file; None: the file in torch's cache, which is downloaded if it is missing.
        layer: the features after this layer: 64, 192, 768 or 2048.
    """

    def __init__(self, weights: str | None = None, layer: int = 2048):
        super().__init__()
        source = _module("torch_fidelity.feature_extractor_inceptionv3", "inception")
        from torchmetrics.image.fid import NoTrainInceptionV3

        url = source.URL_INCEPTION_V3
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if weights is not None:
            path = user_path(weights)
        elif not path.is_file():
            with _download(f"put {url} at {path}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
        copy: Any = io.BytesIO()  # torch-fidelity would run code that a file names
        torch.save(read_weights(path), copy)
        copy.seek(0)
        try:
            self.network = NoTrainInceptionV3("inception-v3-compat", [str(layer)], copy, antialias=False)
        except RuntimeError as error:
            raise ValueError(f"{path} has no weights of this InceptionV3: {_first_line(error)}") from error

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(_as_rgb(images))
        return features


class TimmFeatures(nn.Module):
    """The features of a network of timm before its classifier, with the preprocessing of timm for this network.

    Args:
        model: name in timm, such as "vit_large_patch14_dinov2.lvd142m".
        image_size: pictures are scaled to this size, in pixels; None: the size that the network was trained with.
        weights: a file; None: the file in the cache of huggingface_hub, which is downloaded if it is missing.
    """

    def __init__(self, model: str, image_size: int | None = None, weights: str | None = None):
        super().__init__()
        timm, data = (_module(name, "dinov2") for name in ("timm", "timm.data"))
        size = {} if image_size is None else {"img_size": image_size}
        path = _from_hub(timm, model) if weights is None else user_path(weights)
        names = read_weights(path).keys()
        try:
            self.network: nn.Module = timm.create_model(
                model, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, num_classes=0, **size
            )
        except (RuntimeError, TypeError, AssertionError) as error:  # an unknown model; weights or a size of another
            raise ValueError(f"timm cannot make the network {model}: {_first_line(error)}") from error
        if missing := self.network.state_dict().keys() - names:  # timm leaves these at random
            raise ValueError(f"{path} has no weights of {model}: {min(missing)} is missing.")
        self.network.eval().requires_grad_(False)
        self.transform = data.create_transform(**data.resolve_data_config(size, model=self.network))

    def forward(self, images: Tensor) -> Tensor:
        pixels: list[np.ndarray] = list(_as_rgb(images).permute(0, 2, 3, 1).cpu().numpy())
        prepared = torch.stack([self.transform(Image.fromarray(picture)) for picture in pixels])
        features: Tensor = self.network(prepared.to(images.device))
        return features


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of safetensors or of torch. Runs no code that a file names.

    Raises:
        ValueError: there is no such file, or it is damaged or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"there is no file of weights {path}.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError
    except Exception as error:  # both readers raise exceptions of many types
        raise ValueError(f"{path} holds no weights, or is damaged: put a good copy in its place.") from error
    return state


def _from_hub(timm: Any, model: str) -> Path:
    """Return the file of the weights of a model of timm on the Hugging Face Hub, downloaded if it is missing."""
    from huggingface_hub import hf_hub_download, model_info, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    published = timm.models.get_pretrained_cfg(model)
    if published is None or not published.hf_hub_id:
        raise ValueError(f"timm publishes no weights of a network {model}: set features.weights or another name.")
    name, file = published.hf_hub_id, published.hf_hub_filename or "model.safetensors"
    if not isinstance(try_to_load_from_cache(name, file), str):
        with _download(f"download {name} to {HF_HUB_CACHE}, or set features.weights to a copy of its {file}"):
            model_info(name, timeout=20)  # fails at once without a network; a download tries for a minute
            hf_hub_download(name, file)
    return Path(hf_hub_download(name, file, local_files_only=True))


@contextmanager
def _download(remedy: str) -> Iterator[None]:
    """Limit the time that a download of weights waits.

    Raises:
        ValueError: it failed; the message says how to get the file.
    """
    try:
        with download_timeout():
            yield
    except Exception as error:  # no network, no access, no space: exceptions of many types
        reason = _first_line(error)
        raise ValueError(f"the weights are missing, and downloading them failed ({reason}): {remedy}.") from error


def _module(name: str, extra: str) -> Any:
    """Return a module of an optional dependency.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(f"features={extra} needs {name.partition('.')[0]}: {install_hint(extra)}") from error


def _as_rgb(images: Tensor) -> Tensor:
    """Return grey or RGB images as RGB."""
    if images.shape[1] not in (1, 3):
        raise ValueError("they are made for grey or RGB images.")
    return images.expand(-1, 3, -1, -1)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
