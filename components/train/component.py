"""From a dataset, and perhaps masks, to a trained student."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def train(
    config_json: str,
    section: str,
    dataset: str,
    masks: list[str],
    start: str,
    store_uri: str,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Train one student; an interrupted training resumes where it stopped.

    Args:
        config_json: The whole experiment as JSON.
        section: Which of its training sections is used: warmup, baseline or train.
        dataset: Pointer to the DatasetManifest.
        masks: Pointers to MaskSets; those of unlabelled cases are used. May be empty.
        start: Pointer to the RunRecord whose model the student starts from; empty: fresh weights.
        store_uri: Root of the store that results go to.
        model: Pointer to the RunRecord, for the lineage view.
        metrics: Metrics of the kept step.

    Returns:
        Pointer to the RunRecord.
    """
    from sssflow.contracts.dataset import DatasetManifest
    from sssflow.contracts.masks import MaskSet
    from sssflow.contracts.run import RunRecord
    from sssflow.experiment import parse_experiment
    from sssflow.pipeline.node_jobs import train_on_nodes
    from sssflow.pipeline.shards import masks_for_training
    from sssflow.pipeline.task import component_task, log_metrics

    with component_task("train", section, store_uri) as task:
        experiment = parse_experiment(config_json)
        config = experiment.training(section)
        asked = experiment.generalist if config.method == "semisam" else None
        manifest, manifest_path = task.read(DatasetManifest, dataset)
        mask_sets = masks_for_training(task.read_all(MaskSet, masks), manifest)
        started = task.read(RunRecord, start) if start else None
        weights = None if started else config.network.weights_file
        out = task.folder(
            {
                "config": config.digest(),
                "dataset": manifest.digest,
                "start": started[0].model.sha256 if started else "",
                "generalist": asked.digest() if asked else "",
                "generalist weights": task.file_digest(asked.weights if asked else None),
                # Only where there is one: results of runs without it keep their name.
                **({"student weights": task.file_digest(weights)} if weights else {}),
                **{f"masks {i}": found.digest for i, (found, _) in enumerate(mask_sets)},
            }
        )
        if not task.has(RunRecord, out / "run.json"):
            from sssflow.sam.generalist import load_generalist
            from sssflow.training.launch import Shape, node_command, train_together
            from sssflow.training.stage import run

            given = {
                "masks": [path for _, path in mask_sets],
                "start": started[1].parent / started[0].model.uri if started else None,
            }
            machines = experiment.pipeline.nodes
            if config.processes > 1 and machines is not None:
                command = node_command(experiment, section, manifest_path, out, **given)
                train_on_nodes(machines, command, config.processes, out)
            elif config.processes > 1:
                shape = Shape(config.processes)
                train_together(experiment, section, manifest_path, out, shape, **given)
            else:
                generalist = load_generalist(asked) if asked else None
                run(config, manifest_path, out, generalist=generalist, **given)
        log_metrics(metrics, RunRecord.from_json((out / "run.json").read_bytes()).metrics)
        return task.publish(RunRecord, out / "run.json", model)
