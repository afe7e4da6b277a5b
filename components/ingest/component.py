"""From a folder of scans to a packed dataset."""

from kfp import dsl

from components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def ingest(
    config_json: str,
    source: str,
    source_digest: str,
    store_uri: str,
    dataset: dsl.Output[dsl.Dataset],
) -> str:
    """Find, verify, split and pack the cases of a folder of scans.

    With an empty source and a phantoms section, the phantoms are drawn first and ingested.

    Args:
        config_json: The whole experiment as JSON; the sections ingest and phantoms are used.
        source: Scans: a folder, `file://` or `s3://`; empty for phantoms.
        source_digest: Digest of the scans, for the cache; of `s3://` ones the one that `data push`
            told, and held against them. Empty: their manifest, or names, sizes and times, count.
        store_uri: Root of the store that results go to.
        dataset: Pointer to the DatasetManifest, for the lineage view.

    Returns:
        Pointer to the DatasetManifest.
    """
    from sssflow.contracts.dataset import DatasetManifest
    from sssflow.experiment import parse_experiment
    from sssflow.pipeline.store import bring_scans, source_fingerprint
    from sssflow.pipeline.task import component_task

    with component_task("ingest", "", store_uri) as task:
        config = parse_experiment(config_json)
        if source:
            fingerprint = source_digest or source_fingerprint(source)
            scans = task.folder({"source": fingerprint})
        else:
            phantoms = config.require_phantoms()
            fingerprint = phantoms.digest()
            scans = task.folder({"phantoms": fingerprint})
        roles = config.ingest.split.file
        out = task.folder(
            {
                "config": config.ingest.digest(),
                "roles": task.file_digest(None if roles is None else str(roles)),
                "source": fingerprint,
            }
        )
        if not task.has(DatasetManifest, out / "manifest.json"):
            if source:
                scans = bring_scans(source, scans, fingerprint)
            else:
                from sssflow.ingest.phantoms import stage as phantoms_stage

                phantoms_stage.run(phantoms, scans)
            from sssflow.ingest import stage

            stage.run(config.ingest, scans, out)
        return task.publish(DatasetManifest, out / "manifest.json", dataset)
