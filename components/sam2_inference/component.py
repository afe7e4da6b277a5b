"""From prompts to the masks of SAM-2."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def sam2_inference(
    config_json: str,
    shard: str,
    prompts: str,
    store_uri: str,
    masks: dsl.Output[dsl.Artifact],
) -> str:
    """Let SAM-2 follow the prompted objects through their volumes.

    Args:
        config_json: The whole experiment as JSON; the section sam is used.
        shard: One item of plan_shards; names the dataset.
        prompts: Pointer to the PromptSet of this shard.
        store_uri: Root of the store that results go to.
        masks: Pointer to the MaskSet, for the lineage view.

    Returns:
        Pointer to the MaskSet.
    """
    from sssflow.contracts.dataset import DatasetManifest
    from sssflow.contracts.masks import MaskSet
    from sssflow.contracts.prompts import PromptSet
    from sssflow.contracts.weights import PromptableWeights
    from sssflow.experiment import parse_experiment
    from sssflow.pipeline.shards import Shard, shard_label
    from sssflow.pipeline.task import component_task
    from sssflow.sam.onnx_backend import graphs_input

    with component_task("sam2_inference", shard_label(shard), store_uri) as task:
        config = parse_experiment(config_json).sam
        part = Shard.from_json(shard, where="shard")
        manifest, manifest_path = task.read(DatasetManifest, part.dataset, part.images)
        prompt_set, prompts_path = task.read(PromptSet, prompts)
        weights = task.read(PromptableWeights, part.sam2) if part.sam2 else None
        out = task.folder(
            {
                "config": config.digest(),
                "dataset": manifest.digest,
                "prompts": prompt_set.digest,
                "weights": weights[0].digest if weights else task.file_digest(config.weights),
                **graphs_input(config),
            }
        )
        if not task.has(MaskSet, out / "masks.json"):
            from sssflow.sam import stage

            adapted = weights[1] if weights else None
            stage.run(config, manifest_path, prompts_path, out, weights=adapted)
        return task.publish(MaskSet, out / "masks.json", masks)
