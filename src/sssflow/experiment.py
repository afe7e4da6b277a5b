"""One experiment: the settings of every stage in one file, for a laptop and for a cluster."""

from __future__ import annotations

import json

from pydantic import Field

from sssflow.configuration import Config, parse_config
from sssflow.errors import UsageError
from sssflow.evaluation.config import EvaluateConfig
from sssflow.export.config import ExportConfig
from sssflow.ingest.config import IngestConfig
from sssflow.ingest.phantoms.config import PhantomConfig
from sssflow.pipeline.config import PipelineConfig
from sssflow.prompts.config import PromptConfig
from sssflow.sam.config import AdaptConfig, GeneralistConfig, SamConfig
from sssflow.training.config import TrainConfig

TRAINING_SECTIONS = ("warmup", "baseline", "train")


class ExperimentConfig(Config):
    """Settings of the whole flow, section by section in the order data passes."""

    name: str = Field(
        "experiment", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Names runs and folders."
    )
    phantoms: PhantomConfig | None = Field(
        None, description="Phantoms to draw where no scans are given."
    )
    ingest: IngestConfig = Field(IngestConfig(), description="From scans to a packed dataset.")
    warmup: TrainConfig = Field(
        TrainConfig(), description="The training whose coarse masks are turned into prompts."
    )
    baseline: TrainConfig = Field(
        TrainConfig(),
        description="What the headline is compared with; give it the same steps for a fair gain. "
        "Equal to warmup, it is not trained twice.",
    )
    prompts: PromptConfig = Field(PromptConfig(), description="From coarse masks to prompts.")
    adapt: AdaptConfig = Field(
        AdaptConfig(), description="SAM-2 sees the labelled cases before it is prompted."
    )
    sam: SamConfig = Field(SamConfig(), description="From prompts to SAM-2's masks.")
    generalist: GeneralistConfig = Field(
        GeneralistConfig(), description="What the method semisam asks inside the training step."
    )
    train: TrainConfig = Field(
        TrainConfig(method="sss"), description="The headline training on all cases and masks."
    )
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="Figures and report.")
    export: ExportConfig = Field(ExportConfig(), description="ONNX bundle.")
    pipeline: PipelineConfig = Field(PipelineConfig(), description="Fan-out.")

    def training(self, section: str) -> TrainConfig:
        """One of the training sections.

        Raises:
            UsageError: There is no training section of that name.
        """
        if section not in TRAINING_SECTIONS:
            raise UsageError(
                "There is no such training section.",
                expected=" | ".join(TRAINING_SECTIONS),
                found=section,
            )
        found: TrainConfig = getattr(self, section)
        return found

    def require_phantoms(self) -> PhantomConfig:
        """The phantoms section.

        Raises:
            UsageError: Neither scans nor phantoms are given.
        """
        if self.phantoms is None:
            raise UsageError(
                "There are no scans to ingest.",
                where="source",
                expected="a folder of scans, or a section phantoms in the configuration",
                found="neither",
                action="Give the folder of scans.",
            )
        return self.phantoms


def parse_experiment(config_json: str) -> ExperimentConfig:
    """Read the JSON that travels through a pipeline.

    Raises:
        UsageError: Not JSON, an unknown key, or a value that does not fit.
    """
    try:
        data = json.loads(config_json)
    except ValueError as error:
        raise UsageError(
            "The experiment is not valid JSON.", where="config_json", found=error
        ) from None
    if not isinstance(data, dict):
        raise UsageError(
            "The experiment must be a mapping.", where="config_json", found=type(data).__name__
        )
    return parse_config(ExperimentConfig, data, source="config_json")
