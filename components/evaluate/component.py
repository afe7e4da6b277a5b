"""From trained students to figures and a report."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def evaluate(
    config_json: str,
    dataset: str,
    baseline: str,
    headline: str,
    prompts: list[str],
    masks: list[str],
    store_uri: str,
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Measure the baseline and the headline model on the same cases.

    Args:
        config_json: The whole experiment as JSON; the section evaluate is used.
        dataset: Pointer to the DatasetManifest.
        baseline: Pointer to the RunRecord to compare with.
        headline: Pointer to the RunRecord that the report is about.
        prompts: Pointers to PromptSets; those of cases with a truth are measured.
        masks: Pointers to MaskSets; those of cases with a truth are measured.
        store_uri: Root of the store that results go to.
        metrics: Headline figures, for the run page.
        report: The self-contained report, for the run page.

    Returns:
        Pointer to the EvaluationSummary.
    """
    import shutil

    from sssflow.contracts.dataset import DatasetManifest
    from sssflow.contracts.evaluation import EvaluationSummary
    from sssflow.contracts.masks import MaskSet
    from sssflow.contracts.prompts import PromptSet
    from sssflow.contracts.run import RunRecord
    from sssflow.experiment import parse_experiment
    from sssflow.pipeline.results import headline_metrics, named_models
    from sssflow.pipeline.shards import to_score
    from sssflow.pipeline.task import component_task, log_metrics
    from sssflow.storage.digest import verified_path

    with component_task("evaluate", "", store_uri) as task:
        config = parse_experiment(config_json).evaluate
        manifest, manifest_path = task.read(DatasetManifest, dataset)
        runs = task.read_all(RunRecord, [baseline, headline])
        models, run_paths = named_models(runs)
        prompt_sets, mask_sets = task.read_all(PromptSet, prompts), task.read_all(MaskSet, masks)
        digests = {path: found.digest for found, path in (*prompt_sets, *mask_sets)}
        scored_prompts = to_score(prompt_sets, manifest)
        scored_masks = to_score(mask_sets, manifest)
        out = task.folder(
            {
                "config": config.digest(),
                "dataset": manifest.digest,
                "runs": " ".join(record.digest for record, _ in runs),
                # Their folders are named by what they were made from: made again, they may differ.
                "prompts": " ".join(digests[path] for path in scored_prompts),
                "masks": " ".join(digests[path] for path in scored_masks),
            }
        )
        summary_path = out / "evaluation.json"
        if not task.has(EvaluationSummary, summary_path):
            from sssflow.evaluation import stage

            stage.run(
                config,
                manifest_path,
                models,
                out,
                runs=run_paths,
                masks=scored_masks,
                prompts=scored_prompts,
            )
        pointer = task.publish(EvaluationSummary, summary_path)
        summary, _ = task.read(EvaluationSummary, pointer)
        log_metrics(metrics, headline_metrics(summary))
        shutil.copyfile(verified_path(summary.files["report"], base=out), report.path)
        return pointer
