"""What a model's description says of the images that its weights depend on."""

from __future__ import annotations

from collections.abc import Iterable

from sssflow.contracts.base import Sha256
from sssflow.contracts.dataset import DatasetManifest, Role
from sssflow.contracts.model import SeenImages, TrainedModel


def seen_images(
    manifest: DatasetManifest,
    start: TrainedModel | None,
    *,
    unlabelled: bool,
    leaked: bool,
    selected: bool,
) -> SeenImages:
    """Digests of the packed images that a finished training used, with those of its start.

    Args:
        manifest: The dataset of the training.
        start: The model that the weights come from; what it saw counts for this one too, as far
            as it says so.
        unlabelled: Whether the method has an unlabelled stream.
        leaked: Whether that stream came with labels (SemiSAM's oracle): it counts as labelled.
        selected: Whether the validation cases chose the kept step.
    """
    before = SeenImages() if start is None or start.seen is None else start.seen
    stream = _digests(manifest, Role.UNLABELLED) if unlabelled else set()
    with_labels = _digests(manifest, Role.LABELLED) | (stream if leaked else set())
    without = set() if leaked else stream
    chose = _digests(manifest, Role.VALIDATION) if selected else set()
    return SeenImages(
        labelled=_joined(before.labelled, with_labels),
        unlabelled=_joined(before.unlabelled, without),
        selection=_joined(before.selection, chose),
    )


def _digests(manifest: DatasetManifest, role: Role) -> set[Sha256]:
    return {case.image.sha256 for case in manifest.with_role(role)}


def _joined(before: Iterable[Sha256], now: Iterable[Sha256]) -> tuple[Sha256, ...]:
    return tuple(sorted({*before, *now}))
