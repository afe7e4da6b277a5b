"""From a dataset to the parts that fan out."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def plan_shards(config_json: str, dataset: str, run: str, sam2: str, store_uri: str) -> list[str]:
    """Cut the unlabelled cases into shards, and add one for each scored role.

    Args:
        config_json: The whole experiment as JSON; the section pipeline is used.
        dataset: Pointer to the DatasetManifest.
        run: Pointer to the RunRecord whose model will make the coarse masks.
        sam2: Pointer to the PromptableWeights that will make the masks; empty: none were adapted.
        store_uri: Root of the store that results go to.

    Returns:
        One shard per item, each one short line of JSON; never empty.
    """
    from sssflow.contracts.dataset import DatasetManifest
    from sssflow.experiment import parse_experiment
    from sssflow.pipeline.shards import plan_shards as plan
    from sssflow.pipeline.task import component_task

    with component_task("plan_shards", "", store_uri) as task:
        manifest, _ = task.read(DatasetManifest, dataset)
        config = parse_experiment(config_json).pipeline
        shards = plan(manifest, config, dataset=dataset, run=run, sam2=sam2)
        task.finish(f"{len(shards)} shard(s)")
        return [shard.to_line() for shard in shards]
