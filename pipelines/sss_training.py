"""The whole flow: scans in, a measured and exported student out. Wiring only."""

from typing import NamedTuple

from components.adapt_sam2.component import adapt_sam2
from components.evaluate.component import evaluate
from components.export_onnx.component import export_onnx
from components.generate_prompts.component import generate_prompts
from components.ingest.component import ingest
from components.plan_shards.component import plan_shards
from components.sam2_inference.component import sam2_inference
from components.train.component import train
from kfp import dsl, kubernetes


class Results(NamedTuple):
    """Pointers to the contracts that the run ends with."""

    dataset: str
    warmup: str
    baseline: str
    headline: str
    evaluation: str
    bundle: str


def with_shared_memory(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Give a task that runs PyTorch more shared memory than the 64 MiB of a container."""
    kubernetes.empty_dir_mount(
        task,
        volume_name="shared-memory",
        mount_path="/dev/shm",  # noqa: S108 - a mount point, not a file name
        medium="Memory",
        size_limit="2Gi",
    )
    return task


@dsl.pipeline(
    name="sss-training",
    description="Semi-supervised training with prompts and masks of SAM-2, from scans to ONNX.",
)
def sss_training(
    config_json: str,
    store_uri: str,
    source: str = "",
    source_digest: str = "",
    run_key: str = "",
) -> Results:
    """Every value between tasks is a pointer with a digest, so that the cache sees contents.

    Args:
        config_json: The experiment as JSON.
        store_uri: Root of the store that results go to.
        source: Folder of scans as the tasks see it; empty: the phantoms of the experiment.
        source_digest: Digest of the scans; give it, so that the cache notices changed scans.
        run_key: Name under which the store notes what the run ended with; empty: it does not.
    """
    common = {"config_json": config_json, "store_uri": store_uri}
    dataset = ingest(source=source, source_digest=source_digest, **common).outputs["Output"]

    warmup = train(section="warmup", dataset=dataset, masks=[], start="", **common)
    warmup.set_display_name("train-warmup")
    baseline = train(section="baseline", dataset=dataset, masks=[], start="", **common)
    # After the warm-up: with equal settings its result is found in the store and used.
    baseline.set_display_name("train-baseline").after(warmup)

    sam2 = adapt_sam2(dataset=dataset, **common)
    shards = plan_shards(
        dataset=dataset, run=warmup.outputs["Output"], sam2=sam2.outputs["Output"], **common
    )
    with dsl.ParallelFor(shards.output, name="shards") as shard:
        # Nothing but the item and the run's own parameters may enter the loop (see Shard).
        prompts = generate_prompts(shard=shard, **common)
        masks = sam2_inference(shard=shard, prompts=prompts.outputs["Output"], **common)

    # One Collected for each consumer: kfp 2.17 changes the object while it compiles.
    made, start = dsl.Collected(masks.outputs["Output"]), warmup.outputs["Output"]
    headline = train(section="train", dataset=dataset, masks=made, start=start, **common)
    headline.set_display_name("train-headline")
    evaluation = evaluate(
        dataset=dataset,
        baseline=baseline.outputs["Output"],
        headline=headline.outputs["Output"],
        prompts=dsl.Collected(prompts.outputs["Output"]),
        masks=dsl.Collected(masks.outputs["Output"]),
        **common,
    )
    bundle = export_onnx(
        dataset=dataset,
        run=headline.outputs["Output"],
        evaluation=evaluation.outputs["Output"],
        warmup=warmup.outputs["Output"],
        baseline=baseline.outputs["Output"],
        run_key=run_key,
        **common,
    )
    for task in (warmup, baseline, sam2, masks, headline, evaluation):
        with_shared_memory(task)
    return Results(
        dataset=dataset,
        warmup=warmup.outputs["Output"],
        baseline=baseline.outputs["Output"],
        headline=headline.outputs["Output"],
        evaluation=evaluation.outputs["Output"],
        bundle=bundle.outputs["Output"],
    )
