"""From labelled cases to a SAM-2 that has seen them."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def adapt_sam2(
    config_json: str, dataset: str, store_uri: str, weights: dsl.Output[dsl.Model]
) -> str:
    """Show SAM-2 the labelled cases, with prompts drawn from their masks.

    Args:
        config_json: The whole experiment as JSON; the sections adapt and sam are used.
        dataset: Pointer to the DatasetManifest.
        store_uri: Root of the store that results go to.
        weights: Pointer to the PromptableWeights, for the lineage view.

    Returns:
        Pointer to the PromptableWeights; empty with adapt.steps=0.
    """
    from sssflow.contracts.dataset import DatasetManifest
    from sssflow.contracts.weights import PromptableWeights
    from sssflow.experiment import parse_experiment
    from sssflow.pipeline.task import component_task

    with component_task("adapt_sam2", "", store_uri) as task:
        experiment = parse_experiment(config_json)
        manifest, manifest_path = task.read(DatasetManifest, dataset)
        if experiment.adapt.steps == 0:
            task.finish("not asked for")
            return ""
        out = task.folder(
            {
                "config": experiment.adapt.digest_with(experiment.sam.intensity),
                "sam": experiment.sam.digest(),
                "start": task.file_digest(experiment.sam.weights),
                "dataset": manifest.digest,
            }
        )
        if not task.has(PromptableWeights, out / "sam2.json"):
            from sssflow.sam import adapt

            adapt.run(experiment.adapt, experiment.sam, manifest_path, out)
        return task.publish(PromptableWeights, out / "sam2.json", weights)
