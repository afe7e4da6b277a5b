"""SAM-2 as the frozen generalist of a training step: slices one by one, volumes as video.

Letters: b samples, n objects, s slices, h rows, w columns, y and x rows and columns of the mask
grid (input / 4).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from sssflow.contracts.base import Sha256
from sssflow.contracts.prompts import ObjectPrompts, SlicePrompt
from sssflow.contracts.weights import PromptableWeights
from sssflow.errors import UsageError
from sssflow.prompts.boxes import Mask, bounding_box, interior_point, widen
from sssflow.sam.build import MASK_STRIDE, build_sam2
from sssflow.sam.config import GeneralistConfig, SamConfig
from sssflow.sam.geometry import OUTSIDE_LOGIT, Window, full_window
from sssflow.sam.guide import guided_prompts
from sssflow.sam.heads import FeatureMaps, choose, decode, image_features, without_memory
from sssflow.sam.prompt_arrays import group_by_points, sparse_and_dense
from sssflow.sam.promptable import Floats, Generalist, Prompt, Region, SliceMask
from sssflow.sam.propagate import follow
from sssflow.sam.torch_backend import TorchPromptable
from sssflow.sam.weights_io import load_weights, weights_path
from sssflow.storage.contracts import load_contract
from sssflow.storage.digest import sha256_bytes, sha256_file, verified_path

_Encoded = tuple[FeatureMaps, Floats]


class Sam2Generalist:
    """`Generalist` on any SAM-2; its parameters ask for no gradient and are never changed."""

    def __init__(
        self, model: SAM2Base, config: GeneralistConfig, *, weights_digest: Sha256
    ) -> None:
        """Freeze a model whose weights are loaded.

        Args:
            model: Built for `config.input_size`.
            config: Settings.
            weights_digest: Names the weights.
        """
        self._model = model.eval().requires_grad_(False)
        self._config = config
        self._hints = config.size == "nano"
        self._cache: OrderedDict[bytes, _Encoded] = OrderedDict()
        self._video = TorchPromptable(model, model_digest=weights_digest, hints=self._hints)
        self.name = f"SAM-2 {config.size}, input {config.input_size}"
        self.digest = generalist_digest(config, weights_digest)

    @torch.no_grad()
    def answer(self, image: Tensor, regions: Sequence[Region]) -> tuple[Tensor, Tensor]:
        """See `Generalist.answer`."""
        if not regions:
            return image.new_zeros((0, *image.shape[2:])), image.new_zeros(0)
        self._model.to(image.device)
        grey = unit_range(image.float())
        if image.dim() == 5:
            return self._volumes(grey, regions)
        window = full_window((image.shape[-2], image.shape[-1]))
        maps, small_byx = self._encode(grey, window)
        prompts = [self._prompt(region, window) for region in regions]
        logits = image.new_empty((len(regions), 1, *small_byx.shape[-2:]), dtype=torch.float32)
        iou = image.new_empty(len(regions), dtype=torch.float32)
        for members in group_by_points(prompts):
            group = [prompts[i] for i in members]
            rows = [regions[i].sample for i in members]
            here = torch.tensor(members, device=image.device)
            logits[here], iou[here] = self._ask(maps, small_byx, rows, group, window)
        return window.paste(logits, (image.shape[-2], image.shape[-1])), iou

    def _ask(
        self,
        maps: FeatureMaps,
        small_byx: Floats,
        rows: Sequence[int],
        group: Sequence[Prompt],
        window: Window,
    ) -> tuple[Tensor, Tensor]:
        """One decoder pass for prompts of equal point count, each on its own slice."""
        device = maps.coarse_bcyx.device
        here = maps.take(torch.tensor(rows, device=device))
        size = self._config.input_size
        points, dense = sparse_and_dense(
            group, window, size, hints=self._hints, grey_yx=small_byx[np.asarray(rows)]
        )
        out = decode(
            self._model,
            without_memory(self._model, here),
            here,
            None
            if points is None
            else (torch.from_numpy(points[0]).to(device), torch.from_numpy(points[1]).to(device)),
            None if dense is None else torch.from_numpy(dense[:, None]).to(device),
        )
        choice = choose(self._model, out, point_count=group[0].point_count)
        return choice.logits_n1yx.float(), choice.iou_n1[:, 0].float().clamp(0, 1)

    def _prompt(self, region: Region, window: Window) -> Prompt:
        box = None
        if region.box_2d is not None:
            (y0, x0), (y1, x1) = region.box_2d.tolist()
            box = (float(x0), float(y0), float(x1), float(y1))
        rough = None
        if region.rough is not None:
            cells = self._config.input_size // MASK_STRIDE
            rough = window.crop(torch.from_numpy(region.rough)[None, None], cells)[0, 0].numpy()
        return Prompt(
            box, tuple(map(_xy, region.points_pd.tolist())), tuple(region.labels_p.tolist()), rough
        )

    def _encode(self, grey_b1hw: Tensor, window: Window) -> _Encoded:
        """Features of each slice and the slice on the mask grid.

        With a cache each slice is encoded by itself, so that what is found in the cache and what
        is not, for instance after a resumption, changes no bit.
        """
        if self._config.slices_cached == 0:
            return self._encoded(grey_b1hw, window)
        parts = [self._cached(grey_b1hw[i : i + 1], window) for i in range(len(grey_b1hw))]
        names = ("fine_bcyx", "middle_bcyx", "coarse_bcyx", "position_bcyx")
        maps = FeatureMaps(*(torch.cat([getattr(p[0], name) for p in parts]) for name in names))
        return maps, np.concatenate([small for _, small in parts])

    def _cached(self, grey_11hw: Tensor, window: Window) -> _Encoded:
        key = hashlib.sha256(grey_11hw.cpu().numpy().tobytes()).digest()
        found = self._cache.pop(key, None)
        if found is None:
            found = self._encoded(grey_11hw, window)
        self._cache[key] = found
        if len(self._cache) > self._config.slices_cached:
            self._cache.popitem(last=False)
        return found

    def _encoded(self, grey_b1hw: Tensor, window: Window) -> _Encoded:
        size = self._config.input_size
        small = window.crop(grey_b1hw, size // MASK_STRIDE)[:, 0]
        return image_features(self._model, window.crop(grey_b1hw, size)), small.cpu().numpy()

    def _volumes(self, grey: Tensor, regions: Sequence[Region]) -> tuple[Tensor, Tensor]:
        """Each object carried through its volume as a video; a mask prompt goes to every slice."""
        shape = (int(grey.shape[2]), int(grey.shape[3]), int(grey.shape[4]))
        window = full_window(shape[1:])
        encoded = {
            i: self._video.encode(grey[i, 0].cpu().numpy(), window)
            for i in sorted({region.sample for region in regions})
        }
        logits, iou = [], []
        for region in regions:
            features = encoded[region.sample]
            if region.rough is None:
                item = slice_prompts(region, self._config.prompt_freq)
                settings = SamConfig(propagation=self._config.propagation)
                found = follow(self._video, features, item, range(shape[0]), settings, shape[1:])
            else:
                size, every = self._config.input_size, range(shape[0])
                asked = guided_prompts(region.rough > 0, {}, every, window, size)
                found = {i: self._video.segment(features, i, [p]) for i, p in asked.items()}
            shown = {i: answers for i, answers in found.items() if self._shows(answers)}
            logits.append(_volume(shown, window, shape))
            # SAM-2's estimate is learnt where the object is: that of an empty slice says nothing.
            iou.append(float(np.mean([a.predicted_iou for f in shown.values() for a in f] or [0])))
        return torch.stack(logits).to(grey.device), torch.tensor(iou, device=grey.device)

    def _shows(self, answers: Sequence[SliceMask]) -> bool:
        score = float(np.mean([a.object_score for a in answers]))
        return score > self._config.propagation.presence_logit


def _volume(
    found: dict[int, list[SliceMask]], window: Window, shape: tuple[int, int, int]
) -> Tensor:
    """Logits (s, h, w) on the CPU; slices without an answer get `OUTSIDE_LOGIT`."""
    whole = torch.full(shape, OUTSIDE_LOGIT)
    for index, answers in found.items():
        low = np.stack([a.logits_yx for a in answers]).mean(axis=0, dtype=np.float32)
        whole[index] = window.paste(torch.from_numpy(low)[None, None], shape[1:])[0]
    return whole


def unit_range(image: Tensor) -> Tensor:
    """The image with every sample in [0, 1].

    A sample within [0, 1] stays bit-equal (the rules minmax, percentile and window); of another
    one (z-scores) the 0.5 and 99.5 percentiles become 0 and 1, and what lies beyond is cut.
    """
    flat = image.flatten(1)
    outside = (flat.amin(1) < 0) | (flat.amax(1) > 1)
    if not bool(outside.any()):
        return image
    size = flat.shape[1]
    ordered = flat.sort(1).values
    low = ordered[:, int(0.005 * (size - 1))]
    high = ordered[:, int(np.ceil(0.995 * (size - 1)))]
    column = (-1, *[1] * (image.dim() - 1))
    span = (high - low).clamp_min(1e-6).view(column)
    scaled = ((image - low.view(column)) / span).clamp(0, 1)
    return torch.where(outside.view(column), scaled, image)


def slice_prompts(region: Region, prompt_freq: int) -> ObjectPrompts:
    """Prompts of a volume's object, on slices that show its support.

    Prompted is every `prompt_freq`-th slice from that of largest support, and every slice with a
    click. A slice gets its own clicks, and the box of its support with the region's margin if the
    region has a box; with neither a box nor a click inside, it gets the deepest pixel of its
    support.

    Raises:
        ValueError: The support is empty.
    """
    area = np.count_nonzero(region.support, axis=(1, 2))
    if area.max(initial=0) == 0:
        raise ValueError("a region without support cannot be prompted")
    anchor = int(np.argmax(area))
    clicked = set(region.points_pd[:, 0].tolist())
    shown = np.flatnonzero(area).tolist()
    chosen = [i for i in shown if (i - anchor) % prompt_freq == 0 or i in clicked]
    return ObjectPrompts(
        class_index=1,
        continuity=1.0,
        window_start=0,
        window_length=len(area),
        accepted=True,
        component_voxels=int(area.sum()),
        slices=tuple(_on_slice(region, i, region.support[i]) for i in chosen),
    )


def _on_slice(region: Region, index: int, support_hw: Mask) -> SlicePrompt:
    here = [
        (_xy(point[1:]), int(label))
        for point, label in zip(region.points_pd.tolist(), region.labels_p, strict=True)
        if point[0] == index
    ]
    box = None
    if region.box_2d is not None:
        size_hw = (support_hw.shape[0], support_hw.shape[1])
        box = tuple(map(float, widen(bounding_box(support_hw), region.margin_px, size_hw)))
    if box is None and not any(label for _, label in here):
        x, y = interior_point(support_hw)
        here.insert(0, ((float(x), float(y)), 1))
    return SlicePrompt(
        slice_index=index,
        box_xyxy_px=box,
        points_xy_px=tuple(point for point, _ in here),
        point_labels=tuple(label for _, label in here),
    )


def generalist_digest(config: GeneralistConfig, weights_digest: Sha256) -> Sha256:
    """Digest of weights and settings, without their place and without what changes no mask."""
    settings = config.model_copy(update={"weights": None, "slices_cached": 0})
    return sha256_bytes(f"{settings.digest()}\n{weights_digest}".encode())


def load_generalist(config: GeneralistConfig, *, adapted: Path | None = None) -> Generalist:
    """Build what the configuration names, with its weights.

    Args:
        config: Settings.
        adapted: The `sam2.json` of the adapt stage; its weights replace `config.weights`.

    Raises:
        DataError: The weights are missing or do not fit.
        UsageError: A model without weights, or settings that do not fit each other.
    """
    given = config.weights
    if adapted is not None:
        found = load_contract(PromptableWeights, adapted)
        given = str(verified_path(found.weights, base=adapted.parent))
    if config.kind == "sam_med3d":
        from sssflow.sam.med3d_generalist import Med3dGeneralist, load_med3d

        if given is None:
            raise UsageError(
                "SAM-Med3D needs a checkpoint.",
                where="generalist.weights",
                expected="the path of sam_med3d.pth, sam_med3d_turbo.pth or a safetensors file",
                action="Download the checkpoint from the SAM-Med3D repository and give its path.",
            )
        return Med3dGeneralist(load_med3d(Path(given)), config, sha256_file(Path(given)))
    path = weights_path(config.size, given, where="generalist.weights")
    model = build_sam2(config.size, version=config.version, input_size=config.input_size)
    load_weights(model, path)
    return Sam2Generalist(model, config, weights_digest=sha256_file(path))


def _xy(index: Sequence[int]) -> tuple[float, float]:
    """(row, column) to (x, y)."""
    return float(index[1]), float(index[0])
