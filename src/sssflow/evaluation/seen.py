"""Whether a measured case had a part in the making of the model that is measured on it.

Cases are told by the digest of their packed image: another case id or another split of the same
scans hides nothing, while scans that were packed with other settings are not recognised.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sssflow.contracts.base import Sha256
from sssflow.contracts.dataset import LabelledCase, Role
from sssflow.contracts.model import TrainedModel
from sssflow.errors import UsageError

_NAMED = 3


def seen_notes(
    models: Mapping[str, TrainedModel], measured: Sequence[LabelledCase], *, allow_seen: bool
) -> tuple[str, ...]:
    """What a reader must know first: the measured cases that a model saw in training.

    Raises:
        UsageError: A model learned from the labels of a measured case, and `allow_seen` is false.
    """
    notes = []
    for name, model in models.items():
        if model.seen is None:
            continue
        with_labels = _among(measured, model.seen.labelled)
        if with_labels and not allow_seen:
            raise _refusal(name, with_labels, measured)
        if with_labels:
            notes.append(
                f"MEASURED ON TRAINING CASES: model {name} was trained on the labels of "
                f"{_share(with_labels, measured)}. Its figures say how well it remembers them, not "
                "how well it does on patients that it never saw."
            )
        without = _among(measured, model.seen.unlabelled)
        if without:
            notes.append(
                f"TRANSDUCTIVE: model {name} was trained on the images, not the labels, of "
                f"{_share(without, measured)}. Its figures do not stand for patients that it never "
                "saw."
            )
    return tuple(notes)


def chosen_by(
    models: Mapping[str, TrainedModel], measured: Sequence[LabelledCase]
) -> tuple[str, ...]:
    """Names of the models whose kept training step measured cases chose.

    A model that does not say what it saw counts if any measured case is a validation case.
    """
    validation = any(case.role is Role.VALIDATION for case in measured)
    return tuple(
        name
        for name, model in models.items()
        if (validation if model.seen is None else _among(measured, model.seen.selection))
    )


def silent_notes(models: Mapping[str, TrainedModel]) -> tuple[str, ...]:
    """A note per model whose file is too old to say what it saw."""
    return tuple(
        f"The file of model {name} does not say which images it was trained on: whether measured "
        "cases are among them is not checked."
        for name, model in models.items()
        if model.seen is None
    )


def _among(measured: Sequence[LabelledCase], seen: Collection[Sha256]) -> list[LabelledCase]:
    known = set(seen)
    return [case for case in measured if case.image.sha256 in known]


def _share(cases: Sequence[LabelledCase], measured: Sequence[LabelledCase]) -> str:
    return f"{len(cases)} of the {len(measured)} measured cases ({_names(cases)})"


def _names(cases: Sequence[LabelledCase]) -> str:
    more = len(cases) - _NAMED
    named = ", ".join(case.case_id for case in cases[:_NAMED])
    return f"{named} and {more} more" if more > 0 else named


def _refusal(
    name: str, cases: Sequence[LabelledCase], measured: Sequence[LabelledCase]
) -> UsageError:
    return UsageError(
        "A model would be measured on cases whose labels it was trained on.",
        where=f"model {name}: {_names(cases)}",
        expected="cases that had no part in its training",
        found=f"{len(cases)} of {len(measured)} measured cases are labelled training cases",
        action="Measure held-out cases (role test or validation of the dataset that the model was "
        "trained on), or set evaluate.allow_seen=true: the report then says so on top.",
    )
