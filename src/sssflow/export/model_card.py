"""The model card: Hugging Face's headings and MONAI's data format, filled from records only.

No figure is written by hand: what no record holds is said to be "not recorded".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sssflow
from sssflow.contracts.base import Sha256
from sssflow.contracts.bundle import ParityFigure, TensorContract
from sssflow.contracts.dataset import DatasetManifest, Role
from sssflow.contracts.evaluation import EvaluationSummary, Figure, ModelFigures, p_text
from sssflow.contracts.model import IntensityRule, Preprocessing, TrainedModel
from sssflow.contracts.run import RunRecord
from sssflow.export.config import ExportConfig
from sssflow.networks.volumes import strides

NOT_RECORDED = "not recorded"
_NO_SUCH_FIGURE = "–"


@dataclass(frozen=True)
class CardFacts:
    """Everything a card is made of.

    Attributes:
        model: What was trained.
        model_digest: Its digest.
        manifest: What it was trained on.
        config: Intended use and licence.
        inputs: Input tensors of the graph.
        outputs: Output tensors of the graph.
        parity: The proof of the export.
        spacing_shw_mm: Median voxel size of the training cases.
        run: How it was trained, if recorded.
        evaluation: How good it is, if measured.
    """

    model: TrainedModel
    model_digest: Sha256
    manifest: DatasetManifest
    config: ExportConfig
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    parity: tuple[ParityFigure, ...]
    spacing_shw_mm: tuple[float, float, float] | None
    run: RunRecord | None = None
    evaluation: EvaluationSummary | None = None


def model_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    sections = (
        _front_matter,
        _details,
        _uses,
        _limits,
        _how_to_start,
        _training,
        _evaluation,
        _parity,
        _data_format,
    )
    return "\n\n".join(section(facts) for section in sections) + "\n"


def measured(facts: CardFacts) -> ModelFigures | None:
    """The figures of this very model, found by digest; None if it was not measured."""
    if facts.evaluation is None:
        return None
    found = (m for m in facts.evaluation.models if m.model_digest == facts.model_digest)
    return next(found, None)


def _front_matter(facts: CardFacts) -> str:
    # JSON is YAML: quoting is then right for any text.
    lines = [
        f"license: {json.dumps(facts.config.licence)}",
        "library_name: onnx",
        "pipeline_tag: image-segmentation",
        "tags: [medical-imaging, semantic-segmentation, semi-supervised]",
        f"datasets: [{json.dumps(facts.manifest.name)}]",
    ]
    return "\n".join(["---", *lines, "---"])


def _details(facts: CardFacts) -> str:
    classes = ", ".join(f"{i} {name}" for i, name in enumerate(facts.model.class_names))
    rows = [
        ("Network", facts.model.network.get("name", NOT_RECORDED)),
        ("Training method", facts.model.method),
        ("Kept step", facts.model.step),
        ("Classes", classes),
        ("Model digest", f"`{facts.model_digest}`"),
        ("Dataset digest", f"`{facts.model.dataset_digest}`"),
        ("Made by", f"sssflow {sssflow.__version__}"),
        ("Licence of the weights", facts.config.licence),
    ]
    title = f"# Segmentation of {', '.join(facts.model.class_names[1:])}"
    return "\n".join([title, "", "## Model details", "", *_table(("fact", "value"), rows)])


def _uses(facts: CardFacts) -> str:
    return "\n".join(
        [
            "## Uses",
            "",
            "### Intended use",
            "",
            facts.config.intended_use,
            "",
            "### Out-of-scope use",
            "",
            "Scans of another modality, body region, or intensity scale than the training data, "
            "and any decision about a patient that nobody reviews.",
        ]
    )


def _limits(facts: CardFacts) -> str:
    counts = _role_counts(facts.manifest)
    patients = len({case.patient_id for case in facts.manifest.with_role(Role.LABELLED)})
    lines = [
        "## Bias, risks and limitations",
        "",
        f"* Masks of {patients} patient(s) were used for training "
        f"({counts[Role.LABELLED]} cases); structures or disease they do not show are unknown "
        "to the model.",
        "* Age, sex, scanner and site of the patients: " + NOT_RECORDED + ".",
    ]
    if facts.model.preprocessing.patch is None:
        lines.append(
            "* Each slice is segmented by itself; the result may be uneven between slices."
        )
    if facts.evaluation is None or measured(facts) is None:
        lines.append("* The accuracy of this model was not measured.")
    elif facts.evaluation.patients < 10:
        lines.append(
            f"* Accuracy was measured on {facts.evaluation.patients} patient(s) only; "
            "the intervals are wide."
        )
    notes = facts.run.notes if facts.run is not None else ()
    told = dict.fromkeys([*facts.model.warnings, *notes])
    return "\n".join([*lines, *(f"* {note}" for note in told)])


def _how_to_start(facts: CardFacts) -> str:
    preprocessing = facts.model.preprocessing
    two_d = preprocessing.patch is None
    before, after = _steps_around(preprocessing)
    samples, axes = ("slices", "rows, cols") if two_d else ("patches", "slices, rows, cols")
    return "\n".join(
        [
            "## How to get started",
            "",
            f"1. {_intensity_in_words(preprocessing.intensity)}",
            f"2. {before}",
            "3. Run the graph:",
            "",
            "```python",
            "import onnxruntime",
            "",
            'session = onnxruntime.InferenceSession("student.onnx")',
            f'logits = session.run(None, {{"{facts.inputs[0].name}": {samples}}})[0]  '
            f"# {samples}: float32 (batch, 1, {axes})",
            "```",
            "",
            f"4. {after}",
        ]
    )


def _steps_around(preprocessing: Preprocessing) -> tuple[str, str]:
    """What a caller does before and after the graph."""
    patch = preprocessing.patch
    if patch is None:
        rows, cols = preprocessing.size_hw
        kind = preprocessing.image_interpolation
        antialiased = ", antialiased" if kind == "linear" else ""
        return (
            f"Resize each slice to {rows} × {cols} ({kind}{antialiased}).",
            f"Resize the logits to the slice ({preprocessing.prediction_interpolation}) "
            "and take the arg-max over the classes.",
        )
    size = " × ".join(map(str, patch.size_shw))
    scale = " × ".join(f"{factor:g}" for factor in patch.scale_shw)
    step = " × ".join(map(str, strides(patch)))
    return (
        f"Scale the volume by {scale} (slices × rows × columns), pad it with zeros to at least "
        f"{size}, and cut patches of {size}, one every {step} voxels and one flush with each end.",
        f"Average the softmax of overlapping patches ({patch.window.weights} weights), cut the "
        f"padding off, resize to the volume ({preprocessing.prediction_interpolation}) and take "
        "the arg-max over the classes.",
    )


def _training(facts: CardFacts) -> str:
    manifest, run = facts.manifest, facts.run
    counts = _role_counts(manifest)
    roles = ", ".join(f"{counts[role]} {role.value}" for role in Role)
    data = [
        ("Dataset", f"{manifest.name} (layout {manifest.source_layout})"),
        ("Cases", roles),
        ("Split", manifest.split_rule),
        ("Modality", ", ".join(sorted({case.modality.value for case in manifest.cases}))),
        ("Median spacing, slice × row × column", _millimetres(facts.spacing_shw_mm)),
    ]
    procedure = [
        ("Method", run.method if run else facts.model.method),
        ("Steps", run.steps if run else NOT_RECORDED),
        ("Kept step", run.best_step if run else facts.model.step),
        ("Chosen by", run.selection if run else NOT_RECORDED),
        ("Seed", run.seed if run else NOT_RECORDED),
        ("Configuration digest", f"`{run.config_digest}`" if run else NOT_RECORDED),
        ("Device", run.device if run else NOT_RECORDED),
        ("Wall time", f"{run.wall_time_s:.0f} s" if run else NOT_RECORDED),
        ("Versions", _pairs(run.versions) if run else NOT_RECORDED),
    ]
    return "\n".join(
        [
            "## Training details",
            "",
            "### Training data",
            "",
            *_table(("fact", "value"), data),
            "",
            "### Training procedure",
            "",
            *_table(("fact", "value"), procedure),
        ]
    )


def _evaluation(facts: CardFacts) -> str:
    lines = ["## Evaluation", ""]
    figures, summary = measured(facts), facts.evaluation
    if figures is None or summary is None:
        return "\n".join([*lines, f"Figures of this model: {NOT_RECORDED}."])
    lines += [
        f"{summary.cases} case(s) of {summary.patients} patient(s), roles "
        f"{', '.join(summary.roles)}; distances in {summary.distance_unit}. "
        "Means with their intervals.",
        "",
        *_treatment(summary.config),
        *_table(
            ("metric", "strict", "SSL4MIS convention"),
            [
                (name, _figure(figures.strict.get(name)), _figure(figures.ssl4mis.get(name)))
                for name in _ordered((*figures.strict, *figures.ssl4mis))
            ],
        ),
        "",
        "By class, strict convention:",
        "",
        *_per_class(figures),
        "",
        *(f"* {name}: {meaning}" for name, meaning in summary.conventions.items()),
    ]
    gain = summary.gain
    if gain is not None and gain.headline == figures.name:
        interval = "" if gain.low is None else f" (from {gain.low:.4g} to {gain.high:.4g})"
        p_value = "" if gain.p_value is None else f", {p_text(gain.p_value)}"
        lines += [
            "",
            f"Against {gain.baseline}: {gain.metric} {gain.gain:+.4g}{interval}{p_value}; "
            f"{gain.test}.",
        ]
    return "\n".join(lines)


def _treatment(config: Mapping[str, Any]) -> list[str]:
    """What the measurement did beside running the graph; nothing if that was all."""
    words = {
        "test_time_flips": "the probabilities of four in-plane mirror images were averaged",
        "largest_component": "of every class only its largest piece was kept",
        "window": "patches covered a volume otherwise than told above",
    }
    done = [text for key, text in words.items() if config.get(key)]
    return [f"These are not figures of the graph alone: {'; '.join(done)}.", ""] if done else []


def _parity(facts: CardFacts) -> str:
    rows = [
        (
            "×".join(map(str, figure.shape)),
            figure.source,
            f"{figure.max_abs_difference:.2e}",
            f"{figure.tolerance:.0e}",
            "equal" if figure.masks_equal else "different",
        )
        for figure in facts.parity
    ]
    heads = ("input", "slices", "largest difference", "limit", "arg-max masks")
    return "\n".join(["## Parity with PyTorch", "", *_table(heads, rows)])


def _data_format(facts: CardFacts) -> str:
    image, logits = facts.inputs[0], facts.outputs[0]
    is_patch = facts.model.preprocessing.patch is not None
    content: dict[str, Any] = {
        "version": sssflow.__version__,
        "onnx_opset": facts.config.opset,
        "intended_use": facts.config.intended_use,
        "data_source": facts.manifest.name,
        "data_type": "packed volumes" if is_patch else "packed slices",
        "image_classes": "one channel, intensities after preprocessing",
        "preprocessing": facts.model.preprocessing.model_dump(mode="json"),
        "network_data_format": {
            "inputs": {
                image.name: {
                    "type": "image",
                    "format": "magnitude" if _is_mr(facts.manifest) else "hounsfield",
                    "num_channels": 1,
                    "spatial_shape": list(image.shape[2:]),
                    "dtype": image.dtype,
                    "is_patch_data": is_patch,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                logits.name: {
                    "type": "image",
                    "format": "logits",
                    "num_channels": len(facts.model.class_names),
                    "spatial_shape": list(logits.shape[2:]),
                    "dtype": logits.dtype,
                    "is_patch_data": is_patch,
                    "channel_def": {str(i): n for i, n in enumerate(facts.model.class_names)},
                }
            },
        },
    }
    return "\n".join(
        ["## Data format", "", "```json", json.dumps(content, indent=2, ensure_ascii=False), "```"]
    )


def _per_class(figures: ModelFigures) -> list[str]:
    metrics = _ordered(metric for row in figures.per_class.values() for metric in row)
    rows = [
        (name, *(_figure(found.get(metric)) for metric in metrics))
        for name, found in figures.per_class.items()
    ]
    return _table(("class", *metrics), rows)


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return _NO_SUCH_FIGURE
    if figure.value is None:
        return NOT_RECORDED
    if figure.low is None or figure.high is None:
        return f"{figure.value:.4g}"
    return f"{figure.value:.4g} ({figure.low:.4g} to {figure.high:.4g})"


def _intensity_in_words(rule: IntensityRule) -> str:
    words = {
        "minmax": "Scale each volume so that its minimum becomes 0 and its maximum 1.",
        "percentile": f"Scale each volume so that percentile {rule.low_pct:g} becomes 0 and "
        f"percentile {rule.high_pct:g} becomes 1; clip.",
        "zscore": "Subtract each volume's mean and divide by its standard deviation.",
        "window": f"Scale so that {rule.window_low:g} becomes 0 and {rule.window_high:g} "
        "becomes 1; clip.",
        "none": "Use the voxel values as they are.",
    }
    return words[rule.kind]


def _is_mr(manifest: DatasetManifest) -> bool:
    return all(case.modality.value == "MR" for case in manifest.cases)


def _role_counts(manifest: DatasetManifest) -> dict[Role, int]:
    return {role: len(manifest.with_role(role)) for role in Role}


def _millimetres(spacing: tuple[float, float, float] | None) -> str:
    return NOT_RECORDED if spacing is None else " × ".join(f"{mm:.3g}" for mm in spacing) + " mm"


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(values.items())) or NOT_RECORDED


def _ordered(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(heads), line(["---"] * len(heads)), *(line(row) for row in rows)]
