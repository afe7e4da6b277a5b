"""From a trained student to an ONNX bundle with its proof and its model card."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def export_onnx(
    config_json: str,
    dataset: str,
    run: str,
    evaluation: str,
    store_uri: str,
    warmup: str,
    baseline: str,
    run_key: str,
    bundle: dsl.Output[dsl.Model],
) -> str:
    """Export the student; a graph that differs from PyTorch is not published.

    Args:
        config_json: The whole experiment as JSON; the section export is used.
        dataset: Pointer to the DatasetManifest.
        run: Pointer to the RunRecord of the model.
        evaluation: Pointer to the EvaluationSummary, for the model card.
        store_uri: Root of the store that results go to.
        warmup: Pointer to the RunRecord of the warm-up; noted with the other results.
        baseline: Pointer to the RunRecord of the baseline; noted too.
        run_key: Name under which the store notes all results of the run; empty: they are not.
        bundle: Pointer to the ModelBundle, for the lineage view.

    Returns:
        Pointer to the ModelBundle.
    """
    from sssflow.contracts.bundle import ModelBundle
    from sssflow.contracts.dataset import DatasetManifest
    from sssflow.contracts.evaluation import EvaluationSummary
    from sssflow.contracts.run import RunRecord
    from sssflow.experiment import parse_experiment
    from sssflow.pipeline.task import component_task
    from sssflow.storage.digest import verified_path

    with component_task("export_onnx", "", store_uri) as task:
        config = parse_experiment(config_json).export
        manifest, manifest_path = task.read(DatasetManifest, dataset)
        record, run_path = task.read(RunRecord, run)
        summary, summary_path = task.read(EvaluationSummary, evaluation)
        model = verified_path(record.model, base=run_path.parent)
        out = task.folder(
            {
                "config": config.digest(),
                "dataset": manifest.digest,
                "run": record.digest,
                "evaluation": summary.digest,
            }
        )
        if not task.has(ModelBundle, out / "bundle.json"):
            from sssflow.export import stage

            stage.run(config, model, manifest_path, out, run=run_path, evaluation=summary_path)
        bundle.framework = "onnx"
        pointer = task.publish(ModelBundle, out / "bundle.json", bundle)
        if run_key:
            from sssflow.pipeline.results import note_outputs

            outputs = {"dataset": dataset, "warmup": warmup, "baseline": baseline}
            outputs |= {"headline": run, "evaluation": evaluation, "bundle": pointer}
            note_outputs(store_uri, run_key, outputs)
        return pointer
