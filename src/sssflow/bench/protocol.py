"""A protocol: layout, splits, base settings, convention of measuring and rule of selection.

Protocols are YAML files beside this module (`protocols/<name>.yaml`); a path of one's own file
does as well.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sssflow.bench.published import published_sections
from sssflow.configuration import Config, parse_config, read_mapping
from sssflow.errors import UsageError
from sssflow.experiment import ExperimentConfig

Labelled = (
    Annotated[int, Field(strict=True, ge=1)] | Annotated[float, Field(strict=True, gt=0, lt=1)]
)
"""A whole number of patients, or a share of those that may be labelled."""

_FOLDER = "protocols"
_SUFFIX = ".yaml"


class Protocol(Config):
    """What every run of a benchmark has in common, and where it came from."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Name of the file.")
    title: str = Field(description="Heading of the table.")
    summary: str = Field(description="One sentence: data, sizes, budget.")
    source: Literal["folder", "phantoms"] = Field(
        "folder", description="phantoms: drawn anew for every seed; folder: scans are given."
    )
    unit: Literal["patients", "scans"] = Field("patients", description="What labels are given to.")
    labelled: tuple[Labelled, ...] = Field(
        min_length=1, description="Label counts of the literature, or shares."
    )
    selection: Literal["validation", "last"] = Field(
        "validation",
        description="validation: the step with the best mean foreground Dice on the validation "
        "cases; last: the last step, no selection.",
    )
    convention: Literal["strict", "ssl4mis"] = Field(
        "strict", description="Which convention the published figures are in."
    )
    published: str = Field("", description="Section of the published figures; empty: none.")
    warmup_share: float = Field(
        0.4,
        gt=0,
        lt=1,
        description="Share of the steps that the warm-up takes where a method needs SAM-2's "
        "masks made before; its training gets the rest, so that all methods have equal steps.",
    )
    methods: dict[str, dict[str, Any]] = Field(
        {}, description="Method to the keys below `train` in which it differs from the base."
    )
    references: tuple[str, ...] = Field((), description="Where the protocol is written down.")
    caveats: tuple[str, ...] = Field((), description="What a reader of the table must know.")
    experiment: ExperimentConfig = Field(description="Base settings; `train` is every method's.")

    @model_validator(mode="after")
    def _published_figures_are_there(self) -> Self:
        if self.published and self.published not in published_sections():
            known = " | ".join(published_sections())
            raise ValueError(
                f"published: there are no figures named {self.published!r}; give {known}, or leave "
                "it out"
            )
        return self

    @model_validator(mode="after")
    def _phantoms_are_there(self) -> Self:
        if (self.source == "phantoms") != (self.experiment.phantoms is not None):
            raise ValueError("source: phantoms and a section experiment.phantoms go together")
        return self


def protocol_names() -> tuple[str, ...]:
    """Names of the protocols that are shipped."""
    files = resources.files("sssflow.bench").joinpath(_FOLDER).iterdir()
    return tuple(sorted(f.name.removesuffix(_SUFFIX) for f in files if f.name.endswith(_SUFFIX)))


def load_protocol(name_or_path: str) -> Protocol:
    """A shipped protocol by name, or one's own by the path of its YAML file.

    Raises:
        UsageError: There is none, or its keys or values do not fit.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        return parse_config(Protocol, read_mapping(path), source=str(path))
    if name_or_path not in protocol_names():
        raise UsageError(
            "There is no such protocol.",
            expected=" | ".join(protocol_names()) + " | the path of a YAML file",
            found=name_or_path,
            action="`sssflow bench --list` shows what each one is.",
        )
    shipped = resources.files("sssflow.bench") / _FOLDER / f"{name_or_path}{_SUFFIX}"
    with resources.as_file(shipped) as path:
        return parse_config(Protocol, read_mapping(path), source=path.name)
