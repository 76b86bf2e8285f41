"""The Frechet distance against scipy, torch-fidelity, and cases that have a formula."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.io import write_png

from fedgan.metrics import distances
from fedgan.metrics.distances import frechet
from fedgan.metrics.fidelity import encode
from fedgan.metrics.inception import Inception
from fedgan.metrics.streams.frechet import FrechetDistance


def by_scipy(a: Tensor, b: Tensor) -> float:
    x, y = a.double().numpy(), b.double().numpy()
    s, t = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(s @ t).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root))


def by_samples(a: Tensor, b: Tensor) -> float:
    """From the n x m products of centred features: no covariance, no root of a singular matrix."""
    x, y = a.double(), b.double()
    s, t = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    cross = torch.linalg.svdvals(s @ t.T).sum()
    spread = s.square().sum() + t.square().sum() - 2 * cross
    return float((x.mean(0) - y.mean(0)).square().sum() + spread)


def drawn(n: int, size: int, seed: int) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed)).relu()


@settings(max_examples=15)
@given(
    n=st.integers(5, 80), m=st.integers(5, 80), size=st.integers(2, 40), seed=st.integers(0, 2**31)
)
def test_agrees_with_sqrtm(n: int, m: int, size: int, seed: int) -> None:
    """For fewer images than features, too."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator)
    a = (torch.randn(n, size, generator=generator) @ mix).relu()
    b = (torch.randn(m, size, generator=generator) @ mix * 1.2).relu() + 0.1
    assert frechet(a, b) == pytest.approx(by_scipy(a, b), rel=1e-6)
    assert frechet(a, b) == pytest.approx(by_samples(a, b), rel=1e-9)


@pytest.mark.parametrize("n", [60, 400])
def test_agrees_with_sqrtm_at_256_features(n: int) -> None:
    a, b = drawn(n, 256, 1), drawn(n, 256, 2)
    assert frechet(a, 1.5 * b) == pytest.approx(by_scipy(a, 1.5 * b), rel=1e-6)
    assert frechet(a, 1.5 * b) == pytest.approx(by_samples(a, 1.5 * b), rel=1e-11)


def test_of_few_dimensions_among_many() -> None:
    """Rank 3 of 50 features, and one feature that never changes."""
    a, b = (drawn(200, 3, seed) @ drawn(3, 50, 9) for seed in (1, 2))
    a[:, 7] = b[:, 7] = 4.0
    assert frechet(a, b) == pytest.approx(by_samples(a, b), rel=1e-9)
    # sqrtm warns that it may be inaccurate for a singular matrix, and is, in the sixth digit
    with pytest.warns(scipy.linalg.LinAlgWarning):
        assert frechet(a, b) == pytest.approx(by_scipy(a, b), rel=1e-5)


@pytest.mark.parametrize("change", [1e-1, 1e-2, 1e-3])
def test_of_nearly_the_same(change: float) -> None:
    """The distance falls with the square of the change; its error stays that of the traces."""
    a = drawn(300, 40, 1).double()
    b = a + change * torch.randn(300, 40, generator=torch.Generator().manual_seed(3)).double()
    assert frechet(a, b) == pytest.approx(by_scipy(a, b), rel=1e-6)


@settings(max_examples=20)
@given(n=st.integers(2, 30), size=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_is_0_for_the_same_images_in_any_order_and_never_below(
    n: int, size: int, seed: int
) -> None:
    a = 100 * drawn(n, size, seed)
    assert frechet(a, a) == 0.0
    shuffled = a[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    # the sums are taken in another order: what is left is the mean's rounding
    assert 0.0 <= frechet(a, shuffled) < 1e-20
    assert frechet(a, a + 1e-9) >= 0.0


def test_of_shifted_and_of_stretched_features() -> None:
    a = drawn(500, 8, 0)
    assert frechet(a, a + 2.0) == pytest.approx(8 * 4.0, rel=1e-5)
    spread = float(a.double().var(0).sum())
    away = 9 * float(a.double().mean(0).square().sum())
    assert frechet(a, 4 * a) == pytest.approx(9 * spread + away, rel=1e-12)


def test_a_large_mean_costs_no_digits() -> None:
    a, b = drawn(200, 10, 1).double(), 1.5 * drawn(200, 10, 2).double()
    wanted = by_samples(a, b)
    rounded = [(x + 1e6).float() for x in (a, b)]  # what float32 leaves of them
    assert frechet(a + 2**26, b + 2**26) == pytest.approx(wanted, rel=1e-6)
    assert frechet(*rounded) == pytest.approx(by_samples(*rounded), rel=1e-9)
    assert frechet(*[x.float() for x in (a, b)]) == pytest.approx(wanted, rel=1e-6)


def test_refusals() -> None:
    metric = FrechetDistance(2)
    metric.update(torch.zeros(2, 2), real=True)
    with pytest.raises(RuntimeError, match="found 0 fake"):
        metric.compute()
    metric.update(torch.tensor([[0.0, torch.inf], [0.0, 0.0]]), real=False)
    with pytest.raises(ValueError, match="fake features are not finite"):
        metric.compute()
    with pytest.raises(ValueError, match="origin"):
        FrechetDistance(2, torch.zeros(3))


def test_batches_and_reset() -> None:
    """The states are sums: a stream in batches gives the same, and does not grow."""
    a, b = drawn(100, 6, 1), drawn(80, 6, 2) + 0.3
    metric = FrechetDistance(6, origin=torch.full((6,), 0.5))
    for _ in range(2):
        for real, features in ((True, a), (False, b)):
            for batch in features.split(7):
                metric.update(batch, real=real)
        assert float(metric.compute()) == pytest.approx(by_samples(a, b), rel=1e-12)
        assert metric.compute().dtype == torch.float64
        assert metric.real_features_cov_sum.shape == (6, 6)
        metric.reset()


def on_rank(cluster) -> tuple[float, int]:
    a, b = drawn(100, 6, 1), drawn(80, 6, 2) + 0.3
    metric = FrechetDistance(6)
    metric.update(a[cluster.rank :: cluster.world], real=True)
    metric.update(b[cluster.rank :: cluster.world], real=False)
    return float(metric.compute()), int(metric.real_features_num_samples)


def test_ranks_add_up(on_ranks) -> None:
    """Each rank saw half; after `compute` each has its own half again."""
    distance, mine = on_ranks(2, on_rank)
    assert distance == pytest.approx(by_samples(drawn(100, 6, 1), drawn(80, 6, 2) + 0.3), rel=1e-12)
    assert mine == 50


@pytest.mark.parametrize(("n", "size"), [(300, 64), (40, 64)])
def test_agrees_with_torch_fidelitys_functions(n: int, size: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = drawn(n, size, 1), 1.2 * drawn(n, size, 2)
    theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, (a, b)), verbose=False)
    assert frechet(a, b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)


SMALL = """
import sys, torch
from torch_fidelity import fidelity
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import register_feature_extractor

class Averages(FeatureExtractorBase):
    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
    @staticmethod
    def get_provided_features_list():
        return ("9",)
    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "9"
    @staticmethod
    def can_be_compiled():
        return False
    def forward(self, images):
        return (torch.nn.functional.adaptive_avg_pool2d(images.float() / 64, 3).flatten(1),)

register_feature_extractor("averages", Averages)
fidelity.main()
"""


def command_line(script: list[str], folders: list[Path], *options: object) -> float:
    """What torch-fidelity's command line says of two folders of images."""
    inputs = [f"--input{i}={folder}" for i, folder in enumerate(folders, 1)]
    flags = ["--cpu", "--fid", "--json", "--silent", "--no-cache", "--save-cpu-ram"]
    done = subprocess.run(
        [sys.executable, *script, *flags, *inputs, *map(str, options)],
        capture_output=True,
        text=True,
        timeout=550,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout)["frechet_inception_distance"])


def folders_of(root: Path, *sets: Tensor) -> list[Path]:
    """Each set's images as PNG files in a folder of its own."""
    folders = []
    for i, images in enumerate(sets):
        folders.append(root / str(i))
        folders[-1].mkdir()
        for j, image in enumerate(images):
            write_png(image, str(folders[-1] / f"{j:04}.png"))
    return folders


@pytest.mark.slow
def test_agrees_with_torch_fidelitys_command_line(smooth, averages, tmp_path) -> None:
    """On files of images, with an encoder of its registry that sees what ours sees."""
    a, b = smooth(60, channels=3), smooth(50, channels=3, seed=7) // 2
    ours = frechet(*(encode(averages, images, 50)[0] for images in (a, b)))
    theirs = command_line(["-c", SMALL], folders_of(tmp_path, a, b), "--feature-extractor=averages")
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)  # most of it their eigenvalues of 2048 x 2048
def test_fid_agrees_with_torch_fidelitys_command_line(smooth, tmp_path) -> None:
    """Inception v3 from end to end, resize and all, with random weights as none can be fetched."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    weights = tmp_path / "weights.pth"
    cls = module.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(cls, "load_state_dict", lambda *_: None)
        torch.save(cls("stand-in", ["2048"]).state_dict(), weights)
    a, b = smooth(14, channels=3), smooth(12, channels=3, seed=7) // 2
    encoder = Inception(str(weights))
    encoder.prepare(torch.empty(0), torch.empty(0), 2, seed=0)
    ours = frechet(*(encode(encoder, images, 50)[0] for images in (a, b)))
    theirs = command_line(
        ["-m", "torch_fidelity.fidelity"],
        folders_of(tmp_path, a, b),
        f"--feature-extractor-weights-path={weights}",
    )
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_the_limit_takes_away_the_bias() -> None:
    """Two samples of one Gaussian: the distance is bias alone, and the limit is not."""
    a, b = torch.randn(2, 600, 20, generator=torch.Generator().manual_seed(0))
    sizes = distances.infinity_sizes(600)
    line = [distances.frechet_of_subset(a, b, size, seed=1) for size in sizes]
    assert line[-1] == pytest.approx(frechet(a, b), rel=1e-9)
    assert line[0] > 2 * line[-1]
    assert abs(distances.extrapolate(sizes, line)) < 0.25 * line[-1]
    shifted = [distances.frechet_of_subset(a, b + 0.5, size, seed=1) for size in sizes]
    assert distances.extrapolate(sizes, shifted) == pytest.approx(20 * 0.25, rel=0.1)


def test_the_line_is_that_of_least_squares() -> None:
    sizes, values = [10, 15, 30, 80], [4.0, 3.0, 2.5, 1.0]
    _, intercept = np.polyfit(1 / np.array(sizes), values, 1)
    assert distances.extrapolate(sizes, values) == pytest.approx(intercept)
    with pytest.raises(ValueError, match="two sizes"):
        distances.extrapolate([10], [1.0])


def test_sizes_of_few_samples() -> None:
    assert distances.infinity_sizes(4) == [2, 3, 4]
    assert distances.infinity_sizes(100)[0] == 25
