"""From a trained student to prompts for SAM-2."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def generate_prompts(
    config_json: str,
    shard: str,
    store_uri: str,
    prompts: dsl.Output[dsl.Artifact],
) -> str:
    """Turn the coarse masks of one shard's cases into boxes and points by PCSW.

    Args:
        config_json: The whole experiment as JSON; the section prompts is used.
        shard: One item of plan_shards; names the dataset, the run and its part of the cases.
        store_uri: Root of the store that results go to.
        prompts: Pointer to the PromptSet, for the lineage view.

    Returns:
        Pointer to the PromptSet.
    """
    from sssflow.contracts.dataset import DatasetManifest
    from sssflow.contracts.prompts import PromptSet
    from sssflow.contracts.run import RunRecord
    from sssflow.experiment import parse_experiment
    from sssflow.pipeline.shards import Shard, shard_label
    from sssflow.pipeline.task import component_task
    from sssflow.storage.digest import verified_path

    with component_task("generate_prompts", shard_label(shard), store_uri) as task:
        part = Shard.from_json(shard, where="shard")
        settings = parse_experiment(config_json).prompts
        config = settings.model_copy(update={"roles": (part.role,)})
        manifest, manifest_path = task.read(DatasetManifest, part.dataset, part.images)
        record, record_path = task.read(RunRecord, part.run)
        model = verified_path(record.model, base=record_path.parent)
        cases = part.case_ids(manifest)
        out = task.folder(
            {
                "config": config.digest(),
                "dataset": manifest.digest,
                "model": record.model.sha256,
                "cases": " ".join(cases),
            }
        )
        if not task.has(PromptSet, out / "prompts.json"):
            from sssflow.prompts import stage

            stage.run(config, manifest_path, model, out, case_ids=cases)
        return task.publish(PromptSet, out / "prompts.json", prompts)
