"""Training throughput beside the published design: a file, a worker and a transform per image.

The baseline does what UniMatch's published medical line does (more-scenarios/medical of
LiheYoung/UniMatch, ACDC): one HDF5 file per slice, opened anew for every sample; quarter turns,
rotations and zoom by numpy and scipy, jitter and blur by Pillow, image by image, in the workers of
three data loaders (labelled, unlabelled, and the partners of CutMix); float32; the partners pass
the network once more. Network, losses and optimiser are this package's on both sides, so that the
design alone is compared. Ours is `train_step` of the method unimatch. Where other work runs on the
machine, compare CPU seconds: those of this process and of its workers.

Run: python benchmarks/loop.py [--device cpu] [--size 256] [--batch 12] [--steps 8] [--repeats 5]
    [--compile | --no-compile]: measure ours also with `train.compile`; on a GPU by default
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from loader import pack_phantoms
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from sssflow.contracts.dataset import DatasetManifest, LabelledCase, Role
from sssflow.networks.registry import build_network
from sssflow.storage.contracts import load_contract
from sssflow.training import stage
from sssflow.training.config import TrainConfig
from sssflow.training.loop import batch_of, build_optimiser, train_step, uses_bfloat16
from sssflow.training.losses import pseudo_label_loss, supervised_loss
from sssflow.training.methods.base import labelled_view
from sssflow.training.methods.registry import build_method
from sssflow.training.methods.streams import (
    PseudoLabel,
    channel_dropout,
    make_strong,
    unlabelled_of,
    weak_view,
)
from sssflow.training.standing import Run
from sssflow.volume.packed import read_packed

RESULTS = Path(__file__).parent / "results"
TARGET = {"cpu": 2, "cuda": 10}
UNTIMED = 2
"""Steps before the clock of each block starts: what the workers had ready is then used up."""


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds per image of one block of steps, or of the median block."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Settings:
    """One comparison."""

    size: int
    batch: int
    workers: int
    device: torch.device

    def config(self, precision: str, *, compiled: bool = False) -> TrainConfig:
        """Of both sides."""
        return TrainConfig.model_validate(
            {
                "method": "unimatch",
                "preprocessing": {"size_hw": [self.size, self.size]},
                "batch_labelled": self.batch,
                "batch_unlabelled": self.batch,
                "optimiser": {"kind": "sgd", "learning_rate": 0.01},
                "device": self.device.type,
                "precision": precision,
                "compile": compiled,
            }
        )


# ---- the published design


class Slices(Dataset[tuple[Tensor, ...]]):
    """Slices in files of their own, each made into its views when it is asked for."""

    def __init__(self, files: list[Path], size: int, *, labelled: bool) -> None:
        self.files, self.size, self.labelled = files, size, labelled
        self.jitter = transforms.ColorJitter(0.5, 0.5, 0.5, 0.25)
        self.rng = np.random.default_rng()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        with h5py.File(self.files[index]) as file:
            image, label = file["image"][:], file["label"][:]
        image, label = self._turned(image, label)
        factors = [self.size / side for side in image.shape]
        image, label = (ndimage.zoom(part, factors, order=0) for part in (image, label))
        if self.labelled:
            return torch.from_numpy(image)[None], torch.from_numpy(label).long()
        picture = Image.fromarray((image * 255).astype(np.uint8))
        strong = [self._strong(picture) for _ in range(2)]
        return (_tensor(picture), *strong, *(self._box() for _ in range(2)))

    def _turned(self, *parts: NDArray[Any]) -> list[NDArray[Any]]:
        if self.rng.random() < 0.5:
            turns, axis = self.rng.integers(4), self.rng.integers(2)
            return [np.flip(np.rot90(part, turns), axis).copy() for part in parts]
        if self.rng.random() < 0.5:
            angle = self.rng.integers(-20, 20)
            return [ndimage.rotate(part, angle, order=0, reshape=False) for part in parts]
        return list(parts)

    def _strong(self, picture: Image.Image) -> Tensor:
        changed = self.jitter(picture) if self.rng.random() < 0.8 else picture
        if self.rng.random() < 0.5:
            changed = changed.filter(ImageFilter.GaussianBlur(self.rng.uniform(0.1, 2.0)))
        return _tensor(changed)

    def _box(self) -> Tensor:
        size, mask = self.size, torch.zeros(self.size, self.size)
        if self.rng.random() < 0.5:
            return mask
        area = self.rng.uniform(0.02, 0.4) * size * size
        while True:
            ratio = self.rng.uniform(0.3, 1 / 0.3)
            width, height = int((area / ratio) ** 0.5), int((area * ratio) ** 0.5)
            x, y = self.rng.integers(size, size=2)
            if x + width <= size and y + height <= size:
                mask[y : y + height, x : x + width] = 1
                return mask


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture))[None].float() / 255


def _endless(dataset: Slices, settings: Settings) -> Iterator[list[Tensor]]:
    loader = DataLoader(
        dataset,
        batch_size=settings.batch,
        shuffle=True,
        drop_last=True,
        num_workers=settings.workers,
        persistent_workers=True,
        pin_memory=settings.device.type == "cuda",
    )
    while True:
        yield from loader


class Published:
    """The published loop: its loaders and its step."""

    def __init__(self, slices: Path, settings: Settings) -> None:
        self.device = settings.device
        labelled, unlabelled = (sorted((slices / part).iterdir()) for part in ("x", "u"))
        # The few labelled slices are repeated until both streams are of one length.
        repeated = (labelled * len(unlabelled))[: len(unlabelled)]
        of_x = Slices(repeated, settings.size, labelled=True)
        of_u = Slices(unlabelled, settings.size, labelled=False)
        self.loaders = [_endless(dataset, settings) for dataset in (of_x, of_u, of_u)]
        config = settings.config("float32")
        self.net = build_network(config.network, 4, seed=config.seed).to(self.device)
        self.optimiser = build_optimiser(build_method(self.net, config), config.optimiser)
        self.threshold = config.unimatch.confidence_threshold
        self.generator = Generator(self.device).manual_seed(0)

    def read(self) -> list[list[Tensor]]:
        """A batch of each stream, on the device."""
        return [[part.to(self.device) for part in next(loader)] for loader in self.loaders]

    def step(self) -> None:
        """One step on the next batches."""
        (image_x, label_x), (weak, *views, box1, box2), (partner, *partners, _, _) = self.read()
        boxes = [box == 1 for box in (box1, box2)]
        self.net.eval()
        with torch.no_grad():
            of_partner = self._labels(self.net(partner))
        self.net.train()
        features = self.net.features(torch.cat([image_x, weak]))
        logits_x, logits_w = self.net.head(features).split(len(weak))
        dropped = channel_dropout([f[len(image_x) :] for f in features], 0.5, self.generator)
        logits_fp = self.net.head(dropped)
        pasted = [
            torch.where(box[:, None], other, view)
            for box, view, other in zip(boxes, views, partners, strict=True)
        ]
        strong = self.net(torch.cat(pasted)).split(len(weak))
        own = self._labels(logits_w.detach())
        losses = [self._loss(logits_fp, *own)]
        for logits, box in zip(strong, boxes, strict=True):
            mixed = [torch.where(box, p, o) for p, o in zip(of_partner, own, strict=True)]
            losses.append(0.5 * self._loss(logits, mixed[0], mixed[1]))
        loss = 0.5 * (supervised_loss(logits_x, label_x) + 0.5 * sum(losses))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        loss.item()

    def _labels(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        confidence, label = logits.softmax(1).max(1)
        return label, confidence >= self.threshold

    def _loss(self, logits: Tensor, label: Tensor, sure: Tensor) -> Tensor:
        return pseudo_label_loss(logits, label, sure, torch.ones_like(sure), kind="dice")


# ---- this package


class Ours:
    """`train_step` and, alone, what it does before the network."""

    def __init__(
        self, packed: Path, settings: Settings, precision: str, *, compiled: bool = False
    ) -> None:
        manifest = load_contract(DatasetManifest, packed / "manifest.json")
        config = settings.config(precision, compiled=compiled)
        self.run: Run = stage.prepare(config, manifest, packed, packed)
        self.run.method.train_mode()
        self.number = 0

    def read(self) -> None:
        """A batch with all of its views."""
        self.number += 1
        batch, config = batch_of(self.run, self.number), self.run.config.augmentation
        generator = Generator(self.run.device).manual_seed(self.number)
        labelled_view(batch.labelled, config, generator)
        weak = weak_view(unlabelled_of(batch), config.weak, generator)
        label = torch.zeros_like(weak.image_bchw[:, 0], dtype=torch.int64)
        for _ in range(2):
            make_strong(weak, PseudoLabel(label, label == 0), config, generator)

    def step(self) -> None:
        """One step on the next batch."""
        self.number += 1
        train_step(self.run, self.number)


def write_slices(packed: Path, folder: Path) -> None:
    """One HDF5 file per training slice, as the published data set is laid out."""
    manifest = load_contract(DatasetManifest, packed / "manifest.json")
    for case in manifest.cases:
        part = {Role.LABELLED: "x", Role.UNLABELLED: "u"}.get(case.role)
        if part is None:
            continue
        image = read_packed(case.image, base=packed).astype(np.float32)
        image = (image - image.min()) / np.ptp(image)
        label = np.zeros(image.shape, np.uint8)
        if isinstance(case, LabelledCase):
            label = read_packed(case.label, base=packed)
        (folder / part).mkdir(parents=True, exist_ok=True)
        for i in range(len(image)):
            with h5py.File(folder / part / f"{case.case_id}_{i:03d}.h5", "w") as file:
                file["image"], file["label"] = image[i], label[i]


def cost(work: Callable[[], object], steps: int, settings: Settings) -> Cost:
    """Of a labelled or unlabelled image in a block of steps."""
    for _ in range(UNTIMED):
        work()
    _wait(settings.device)
    wall, cpu = time.perf_counter(), cpu_s()
    for _ in range(steps):
        work()
    _wait(settings.device)
    images = 2 * settings.batch * steps
    return Cost((time.perf_counter() - wall) / images, (cpu_s() - cpu) / images)


def cpu_s() -> float:
    """CPU seconds so far of this process and its workers (Linux; elsewhere of this process)."""
    total = time.process_time()
    for worker in multiprocessing.active_children():
        stat = Path(f"/proc/{worker.pid}/stat")
        if stat.exists():
            # After the name, which may hold spaces: utime and stime are fields 14 and 15.
            fields = stat.read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def compare(
    settings: Settings, packed: Path, slices: Path, options: argparse.Namespace
) -> list[str]:
    """Rows of the table; the kinds take turns, so that a drift of the machine favours none."""
    published = Published(slices, settings)
    ours = {"float32": Ours(packed, settings, "float32")}
    if uses_bfloat16(settings.config("auto"), settings.device):
        ours["bfloat16"] = Ours(packed, settings, "auto")
    if options.compile:
        last = list(ours)[-1]
        ours[f"{last}, compiled"] = Ours(packed, settings, last, compiled=True)
    work: dict[str, Callable[[], object]] = {
        "input alone, published design": published.read,
        "input alone, ours": ours["float32"].read,
        "whole step, published design (float32)": published.step,
        **{f"whole step, ours ({name})": one.step for name, one in ours.items()},
    }
    found: dict[str, list[Cost]] = {name: [] for name in work}
    for _ in range(options.repeats):
        for name, one in work.items():
            found[name].append(cost(one, options.steps, settings))
    rows, base = [], Cost(1.0, 1.0)
    for name, costs in found.items():
        walls = [one.wall_s for one in costs]
        mid = Cost(statistics.median(walls), statistics.median(one.cpu_s for one in costs))
        base = mid if "published" in name else base
        rows.append(
            f"| {name} | {1 / mid.wall_s:.2f} | {1 / max(walls):.2f} to {1 / min(walls):.2f} "
            f"| {base.wall_s / mid.wall_s:.2f} | {1e3 * mid.cpu_s:.0f} "
            f"| {base.cpu_s / mid.cpu_s:.2f} |"
        )
    return rows


def page(rows: list[str], settings: Settings, options: argparse.Namespace, load: str) -> str:
    """The result as Markdown."""
    kind = settings.device.type
    name = torch.cuda.get_device_name() if kind == "cuda" else platform.machine()
    return (
        "# Training throughput beside the published design\n\n"
        f"{datetime.now(UTC):%Y-%m-%d}. Device: {name}; {len(os.sched_getaffinity(0))} cores, "
        f"{torch.get_num_threads()} torch thread(s), torch {torch.__version__}. UniMatch, U-Net 16 "
        f"to 256 channels, {settings.size}x{settings.size}, {settings.batch} labelled and "
        f"{settings.batch} unlabelled slices per step, {settings.workers} worker(s) for each of "
        f"the three loaders of the published design; median of {options.repeats} blocks of "
        f"{options.steps} steps, in turn.\n\n"
        f"Load average of the machine, 1 minute: {load}. A load above 1 before the start means "
        "that other work ran beside it.\n\n"
        "| what | images/s | range | ratio to the published design | CPU, ms per image "
        "| ratio of CPU time |\n| --- | --- | --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + f"\n\nAsked for: a ratio of {TARGET[kind]} or more of the whole step on this kind of "
        "device. Images are the labelled and unlabelled ones of a batch; a step sees each of the "
        "latter in several views. CPU time is that of the process and its workers; work beside it "
        f"changes it less than the wall time. Again: `python benchmarks/loop.py --device {kind}`.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available()
    )
    parser.add_argument("--out", type=Path, help="default: results/loop_<device>.md")
    options = parser.parse_args()
    settings = Settings(options.size, options.batch, options.workers, torch.device(options.device))
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        pack_phantoms(Path(name))
        packed, slices = Path(name) / "packed", Path(name) / "slices"
        write_slices(packed, slices)
        rows = compare(settings, packed, slices, options)
    load = f"{before:.1f} before, {os.getloadavg()[0]:.1f} at the end"
    out = options.out or RESULTS / f"loop_{settings.device.type}.md"
    out.write_text(page(rows, settings, options, load), encoding="utf-8")
    print(out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
