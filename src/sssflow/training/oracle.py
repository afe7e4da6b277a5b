"""The leak of SemiSAM v1's released code, rebuilt behind two keys: labels for unlabelled cases.

In a DatasetManifest an unlabelled case has no label by type, so nothing can leak by accident. The
only way is the one taken here: a second dataset, named beside `semisam.preset: oracle_prompts`, in
which the same cases (same id, same image to the bit) are labelled.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sssflow.contracts.dataset import DatasetManifest, LabelledCase, Role, UnlabelledCase
from sssflow.errors import DataError
from sssflow.training.data import LabelledBatch, Stream, UnlabelledBatch

WARNING = (
    "LEAKS LABELS (semisam.preset oracle_prompts): the true labels of the unlabelled cases "
    "prompted the generalist during this training. Its figures are an upper bound, not "
    "semi-supervised results."
)


@dataclass(frozen=True, kw_only=True)
class LeakedBatch(UnlabelledBatch):
    """An unlabelled batch that knows the truth; only `LeakedStream` makes it."""

    leaked_label_bhw: Tensor


@dataclass(frozen=True)
class LeakedStream:
    """The unlabelled stream of an oracle run: labelled samples handed out as unlabelled ones."""

    samples: Stream

    def __len__(self) -> int:
        return len(self.samples)

    def labelled_batch(self, index: Tensor, *, seed: int) -> LabelledBatch:
        """See `Stream`."""
        return self.samples.labelled_batch(index, seed=seed)

    def unlabelled_batch(self, index: Tensor, *, seed: int) -> LeakedBatch:
        """See `Stream`; with the labels."""
        found = self.samples.labelled_batch(index, seed=seed)
        return LeakedBatch(found.image_bchw, found.case_ids, leaked_label_bhw=found.label_bhw)


def leaked_manifest(manifest: DatasetManifest, oracle: DatasetManifest) -> DatasetManifest:
    """The unlabelled cases of `manifest`, as the labelled cases that they are in `oracle`.

    Raises:
        DataError: A case is missing there, has no label, or is another image; or other classes.
    """
    known = {case.case_id: case for case in oracle.cases}
    found = []
    for case in manifest.cases:
        if not isinstance(case, UnlabelledCase):
            continue
        other = known.get(case.case_id)
        same = isinstance(other, LabelledCase) and other.image.sha256 == case.image.sha256
        if not same or not isinstance(other, LabelledCase):
            raise DataError(
                "The dataset of the leaked labels does not hold this case with a label.",
                where=case.case_id,
                expected=f"a labelled case with the image {case.image.sha256}",
                found="no such case"
                if other is None
                else f"{type(other).__name__} of {other.role}",
                action="Pack the same scans again with every label, and name that dataset.",
            )
        found.append(other.model_copy(update={"role": Role.LABELLED}))
    if oracle.class_names != manifest.class_names:
        raise DataError(
            "The dataset of the leaked labels has other classes.",
            expected=manifest.class_names,
            found=oracle.class_names,
        )
    return oracle.model_copy(update={"cases": tuple(found)})
