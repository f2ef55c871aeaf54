"""Features of published networks: the real code of torch-fidelity, torchmetrics and timm with random weights."""

import urllib.error

import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from ddpm.data import MNISTMini
from ddpm.metrics.features import check_features, features_of
from ddpm.metrics.frechet import frechet_distance
from ddpm.metrics.pretrained import Inception, TimmFeatures, read_weights


@pytest.fixture(scope="module")
def digits():
    data = MNISTMini()
    data.setup()
    return data.split("test").images[:12]


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A file of random weights of the published InceptionV3."""
    source = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(source, "load_state_dict", lambda self, state: None)
        network = source("inception-v3-compat", ["64"], str(path))
    torch.save(network.state_dict(), path)
    return path


def test_the_frechet_distance_of_inception_features_is_that_of_torchmetrics(inception_weights, digits):
    """On grey digits, at fewer images than features. torchmetrics gets them as RGB."""
    ours = Inception(weights=str(inception_weights), layer=64)
    parts = digits.split(6)
    found, reference = (features_of(ours, part).features for part in parts)
    theirs = FrechetInceptionDistance(64, feature_extractor_weights_path=str(inception_weights), antialias=False)
    for images, real in zip(parts, (False, True), strict=True):
        theirs.update(images.repeat(1, 3, 1, 1), real=real)
    assert frechet_distance(found, reference).mean == pytest.approx(theirs.compute().item(), rel=1e-3)
    with pytest.raises(ValueError, match="they are made for grey or RGB images"):
        check_features(ours, (4, 28, 28))


def test_weights_that_cannot_be_downloaded_are_named_with_their_place(tmp_path, monkeypatch):
    """`.invalid` never resolves. The download of torch.hub is the real one."""
    source = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(source, "URL_INCEPTION_V3", "http://weights.invalid/inception-6726825d.pth")
    place = tmp_path / "hub" / "checkpoints" / "inception-6726825d.pth"
    with pytest.raises(ValueError, match="the weights are missing, and downloading them failed") as raised:
        Inception()
    assert str(raised.value).endswith(f": put http://weights.invalid/inception-6726825d.pth at {place}.")
    assert isinstance(raised.value.__cause__, urllib.error.URLError)
    assert "\n" not in str(raised.value)
    place.write_bytes(b"whatever")
    with pytest.raises(ValueError, match="holds no weights, or is damaged"):
        Inception()


def test_features_that_are_not_finite_are_refused(digits):
    with pytest.raises(ValueError, match="NaN or infinite"):
        features_of(lambda images: images.flatten(1).float().log(), digits)


class Evil:
    def __reduce__(self):
        return print, ("code of a file of weights ran",)


def test_other_files_of_weights_are_refused(tmp_path, inception_weights, capsys):
    torch.save({"x": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth has no weights of this InceptionV3"):
        Inception(weights=str(tmp_path / "other.pth"))
    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "a.safetensors").write_bytes(b"whatever")
    for name in ("evil.pth", "list.pth", "a.safetensors"):
        with pytest.raises(ValueError, match=f"{name} holds no weights"):
            read_weights(tmp_path / name)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="there is no file of weights"):
        read_weights(tmp_path)


@pytest.fixture(scope="module")
def vit_weights(tmp_path_factory):
    """A file of random weights of a small vision transformer of timm."""
    timm = pytest.importorskip("timm")
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(timm.create_model("test_vit", pretrained=False).state_dict(), path)
    return path


def test_timm_features_have_the_preprocessing_of_the_network(vit_weights, digits):
    timm = pytest.importorskip("timm")
    features = TimmFeatures("test_vit", image_size=64, weights=str(vit_weights))
    colour = digits.view(4, 3, 28, 28)
    network = timm.create_model("test_vit", num_classes=0, img_size=64, checkpoint_path="").eval()
    network.load_state_dict(features.network.state_dict())
    config = timm.data.resolve_data_config({"img_size": 64}, model=network)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)  # not those of ImageNet, which are the default
    transform = timm.data.create_transform(**config)
    with torch.no_grad():
        expected = torch.stack([network(transform(to_picture(image))[None])[0] for image in colour])
    found = features_of(features, colour).features
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std(dim=0).min() > 1e-4
    assert torch.equal(features_of(features, colour).features, found)
    grey = features_of(features, digits[:2]).features
    torch.testing.assert_close(grey, features_of(features, digits[:2].repeat(1, 3, 1, 1)).features)


def to_picture(image):
    from PIL import Image

    return Image.fromarray(image.permute(1, 2, 0).numpy())


def test_timm_networks_that_cannot_be_made_are_refused_in_a_line(vit_weights, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="timm publishes no weights of a network test_vitt"):
        TimmFeatures("test_vitt")
    for model, problem in {
        "test_vitt": "timm cannot make the network test_vitt: Unknown model",
        "test_vit2": "has no weights of test_vit2: blocks.0.ls1.gamma is missing",  # timm itself leaves it at random
        "test_vit3": "timm cannot make the network test_vit3: ",  # a parameter has another shape
    }.items():
        with pytest.raises(ValueError, match=problem):
            TimmFeatures(model, weights=str(vit_weights))
    with pytest.raises(ValueError, match="timm cannot make the network test_convnext"):
        TimmFeatures("test_convnext", image_size=64, weights=str(vit_weights))
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    with pytest.raises(ValueError, match=r"the weights are missing.*download timm/test_vit\.r160_in1k to ") as raised:
        TimmFeatures("test_vit")
    assert "\n" not in str(raised.value)
