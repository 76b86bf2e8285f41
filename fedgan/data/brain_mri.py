"""Brain MRI without a download: oblique slices of the MNI152 T1 template.

The template is the average of 152 T1-weighted scans of healthy adults, brain only, 197 x 233 x 189
voxels of 1 mm (ICBM 152 nonlinear 2009a, symmetric). It ships inside the nilearn package, whose own
code is BSD-licensed and whose page on the template names no licence; MNI's own terms are:

    Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological
    Institute, McGill University. Permission to use, copy, modify, and distribute this software and
    its documentation for any purpose and without fee is hereby granted, provided that the above
    copyright notice appear in all copies. The authors and McGill University make no representations
    about the suitability of this software for any purpose. It is provided "as is" without express
    or implied warranty. The authors are not responsible for any data loss, equipment damage,
    property loss, or injury to subjects or patients resulting from the use or misuse of this
    software package.

To cite: V. Fonov et al., "Unbiased average age-appropriate atlases for pediatric studies",
NeuroImage 54(1), 2011; V. Fonov et al., "Unbiased nonlinear average age-appropriate brain templates
from birth to adulthood", NeuroImage 47, S102, 2009; D. L. Collins et al., "ANIMAL+INSECT: improved
cortical structure segmentation", IPMI 1999.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgan.cache import cache_dir
from fedgan.data.base import Dataset, Source, Split
from fedgan.data.store import Arrays, remembered
from fedgan.errors import UserError
from fedgan.seeding import numpy_generator, torch_generator

Floats = NDArray[np.floating[Any]]

SIZES = (28, 32, 64, 128)
LEVELS = (  # name, lowest and highest z of a slice's centre in MNI mm: whole periods, all of them
    ("cerebellum and brainstem", -52.5, -32.5),
    ("temporal lobes and midbrain", -32.5, -2.5),
    ("basal ganglia and ventricles", -2.5, 27.5),
    ("upper hemispheres", 27.5, 67.5),
)
PERIOD = 10.0
BANDS = {"train": (3.0, 7.0), "val": (8.0, 9.0), "test": (1.0, 2.0)}
"""Where in a period of PERIOD mm a split's slices lie; between two splits is 1 mm of none's.

Every other period is mirrored, so that a split lies on both sides of the levels' borders it is near
to: a classifier that draws a border too high or too low does not gain on one split."""

FIELD_OF_VIEW = 208.0  # mm; the template's brain is 145 x 181
CENTRE = (98.0, 117.0, 72.0)  # the voxel in the brain's middle, at MNI z = 0
PITCH, ROLL, YAW = 8.0, 5.0, 8.0  # largest tilt about x and y, and turn in the plane, in degrees
SHIFT = 5.0  # largest shift in the plane, in mm
STRETCH = 0.08  # largest change of scale, each axis for itself
WARP = 3.0  # standard deviation of the elastic warp's control points, in mm
KNOTS = 5  # control points along an edge
VERSION = 1  # of the recipe: raise it with every change that changes bytes


class BrainMRI(Source):
    """Axial brain MRI slices at four anatomical levels, cut from the MNI152 template.

    Each image is a slice of its own: position, tilt, turn, shift, anisotropic scale and a smooth
    warp are drawn at random, so that images vary as patients do, and a mirrored brain is as
    plausible as the original (the template is symmetric). Train, val and test are kept apart by
    the position of the slice's centre: they take turns along the axis, with gaps between.

    Args:
        train: training images, in equal parts from each level.
        val: validation images.
        test: test images.
        scanners: give each client a scanner of its own, with its contrast, bias field and noise.

    Example:
        >>> data = BrainMRI(train=400, val=40, test=40).load(None, 32, seed=1)
        >>> data.train.images.shape
        torch.Size([400, 1, 32, 32])
    """

    name = "brain-mri"

    def __init__(
        self, train: int = 4000, val: int = 500, test: int = 500, scanners: bool = False
    ) -> None:
        self.counts = {"train": train, "val": val, "test": test}
        self.scanners = scanners
        for split, count in self.counts.items():
            if count < len(LEVELS):
                raise UserError(
                    f"data.init_args.{split}: {count}; allowed: at least {len(LEVELS)}, "
                    "one image of each level"
                )

    def load(self, path: str | None, size: int | None, seed: int) -> Dataset:
        if path is not None:
            raise UserError(
                f"data.path: {path}; brain-mri is cut from nilearn's template: leave out"
            )
        size = 32 if size is None else size
        if size not in SIZES:
            raise UserError(
                f"data.size: {size}; allowed for brain-mri: {', '.join(map(str, SIZES))}"
            )
        template = template_file()
        recipe = [VERSION, hashlib.sha256(template.read_bytes()).hexdigest(), size, seed]
        recipe += list(self.counts.values())
        key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]

        def build() -> Arrays:
            volume = read_volume(template, FIELD_OF_VIEW / size)
            arrays: Arrays = {}
            for split, count in self.counts.items():
                labels, z = positions(split, count, seed)
                arrays[f"{split}_images"] = cut(volume, z, size, seed, split)
                arrays[f"{split}_labels"] = labels
            return arrays

        arrays = remembered(cache_dir("brain-mri") / f"{size}px-{key}.npz", build)
        train, val, test = (
            Split(
                torch.from_numpy(arrays[f"{split}_images"])[:, None],
                torch.from_numpy(arrays[f"{split}_labels"]),
            )
            for split in BANDS
        )
        classes = tuple(name for name, _, _ in LEVELS)
        return Dataset(self.name, train, val, test, classes, flip=True)

    def acquire(self, images: Tensor, client: int, seed: int) -> Tensor:
        return scan(images, client, seed) if self.scanners else images


def template_file() -> Path:
    """The template inside the installed nilearn, found without importing it (which takes seconds).

    Raises `UserError` where nilearn is not installed or does not hold it.
    """
    spec = importlib.util.find_spec("nilearn")
    name = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder, "datasets", "data", name)
        if file.is_file():
            return file
    raise UserError(
        f"data.name: brain-mri needs {name}, which ships in nilearn: pip install nilearn"
    )


def read_volume(template: Path, pitch: float) -> Floats:
    """The template as float32 [x, y, z] in [0, 255], smoothed for sampling every `pitch` mm.

    The Gaussian's width keeps what is finer than two pixels from turning into moire; across the
    slice it does what a scanner's slice thickness does.
    """
    import nibabel
    from scipy.ndimage import gaussian_filter

    try:
        volume = np.asarray(nibabel.load(template).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    except Exception as error:  # nibabel, gzip and zlib raise of their own kinds
        raise UserError(f"{template}: cannot be read ({error}); reinstall nilearn") from None
    volume *= 255.0 / volume.max()
    smooth: Floats = gaussian_filter(volume, sigma=0.4 * pitch, truncate=3.0)
    return smooth


def positions(split: str, count: int, seed: int) -> tuple[NDArray[np.int64], Floats]:
    """Labels int64 [count] and the z of the slices' centres in MNI mm [count].

    The levels take turns; within one, z is uniform over the split's bands.
    """
    rng = numpy_generator(seed, "brain-mri", split, "positions")
    labels = np.arange(count) % len(LEVELS)
    z = np.empty(count)
    low, high = BANDS[split]
    for label, (_, bottom, top) in enumerate(LEVELS):
        mine = np.flatnonzero(labels == label)
        period = rng.integers(round((top - bottom) / PERIOD), size=len(mine))
        within = rng.uniform(low, high, len(mine))
        odd = (round((bottom - LEVELS[0][1]) / PERIOD) + period) % 2
        z[mine] = bottom + PERIOD * period + np.where(odd, PERIOD - within, within)
    order = rng.permutation(count)
    return labels[order], z[order]


def cut(volume: Floats, z: Floats, size: int, seed: int, split: str) -> NDArray[np.uint8]:
    """Slices uint8 [n, size, size] of `volume`, centred at `z` mm; anterior is up."""
    from scipy.ndimage import map_coordinates

    rng = numpy_generator(seed, "brain-mri", split, "shapes")
    n = len(z)
    tilt = rotations(*(rng.uniform(-a, a, n) for a in np.deg2rad([PITCH, ROLL, YAW])))
    scale = rng.uniform(1.0 - STRETCH, 1.0 + STRETCH, (n, 2))
    shift = rng.uniform(-SHIFT, SHIFT, (n, 2))
    knots = rng.normal(0.0, WARP, (n, 3, KNOTS, KNOTS))

    pixels = (np.arange(size) + 0.5) / size - 0.5
    weights = spline(size)
    images = np.empty((n, size, size), np.uint8)
    step = max(1, 2**21 // size**2)  # some 100 MB at a time, whatever the size
    for start in range(0, n, step):
        part = slice(start, start + step)
        # Where each pixel lies, in mm, as seen from the slice's own centre: [n, 3, rows, columns].
        where = np.einsum("ri,nkij->nkrj", weights, knots[part])
        where = np.einsum("cj,nkrj->nkrc", weights, where)
        where[:, 0] += (
            FIELD_OF_VIEW * pixels * scale[part, 0, None, None] + shift[part, 0, None, None]
        )
        rows = -FIELD_OF_VIEW * pixels[:, None]  # the first row is anterior
        where[:, 1] += rows * scale[part, 1, None, None] + shift[part, 1, None, None]
        where = np.einsum("nkl,nlrc->knrc", tilt[part], where)
        where += np.array(CENTRE)[:, None, None, None]
        where[2] += z[part, None, None]
        values = map_coordinates(volume, where, order=1, mode="constant", output=np.float32)
        images[part] = np.clip(values + 0.5, 0.0, 255.0)
    return images


def rotations(pitch: Floats, roll: Floats, yaw: Floats) -> Floats:
    """Rotation matrices [n, 3, 3]: a turn in the plane, then tilts about y (roll) and x (pitch)."""

    def about(axis: int, angle: Floats) -> Floats:
        i, j = (axis + 1) % 3, (axis + 2) % 3
        matrix = np.zeros((len(angle), 3, 3))
        matrix[:, axis, axis] = 1.0
        matrix[:, i, i] = matrix[:, j, j] = np.cos(angle)
        matrix[:, j, i] = np.sin(angle)
        matrix[:, i, j] = -np.sin(angle)
        return matrix

    turned: Floats = about(0, pitch) @ about(1, roll) @ about(2, yaw)
    return turned


def spline(size: int) -> Floats:
    """Weights [size, KNOTS] of the uniform cubic B-spline that carries the knots to the pixels."""
    at = (np.arange(size) + 0.5) / size * (KNOTS - 3) + 1.0
    t = np.abs(at[:, None] - np.arange(KNOTS))
    near = 2.0 / 3.0 - t**2 + t**3 / 2.0
    far = np.clip(2.0 - t, 0.0, None) ** 3 / 6.0
    weights: Floats = np.where(t < 1.0, near, far)
    return weights


def scan(images: Tensor, client: int, seed: int) -> Tensor:
    """`images` uint8 [n, C, H, W] as the scanner of `client` takes them.

    A scanner has its contrast (a gamma in [0.7, 1.4]), a bias field (a smooth, fixed gain of some
    15 % across the image: the coil's sensitivity) and noise (2 to 5 % of the full scale; Rician, as
    magnitude images have it, so that the background is not black). Drawn on the CPU, so that the
    bytes are the same whatever trains on them.
    """
    rng = numpy_generator(seed, "scanner", client)
    gamma = float(np.exp(rng.uniform(np.log(0.7), np.log(1.4))))
    slope = rng.normal(0.0, 0.15, 2)
    bowl = rng.uniform(-0.15, 0.15)
    noise = float(rng.uniform(0.02, 0.05))
    height, width = images.shape[-2:]
    y = np.linspace(-1.0, 1.0, height)[:, None]
    x = np.linspace(-1.0, 1.0, width)
    gain = np.exp(slope[0] * y + slope[1] * x + bowl * (x**2 + y**2 - 1.0))
    bias = torch.from_numpy(gain.astype(np.float32))
    generator = torch_generator(seed, "scanner", client, "noise")

    scanned = torch.empty_like(images, device="cpu")
    for part, out in zip(torch.split(images.cpu(), 1024), torch.split(scanned, 1024), strict=True):
        signal = (part.float() / 255.0).pow(gamma) * bias
        real = signal + noise * torch.randn(signal.shape, generator=generator)
        imaginary = noise * torch.randn(signal.shape, generator=generator)
        out.copy_((torch.hypot(real, imaginary) * 255.0 + 0.5).clamp_(0.0, 255.0))
    return scanned.to(images.device)
