"""A new version comes live whole, or the former one stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from sssflow.contracts.bundle import ModelBundle
from sssflow.contracts.sam2_graphs import Sam2Bundle
from sssflow.errors import DataError, InternalError, UnavailableError
from sssflow.serving import check, local_triton, publish, repository
from sssflow.serving.bench import sample_inputs
from sssflow.serving.client import TritonClient
from sssflow.serving.config import ClientConfig, RepositoryConfig
from sssflow.serving.environment import TritonEnvironment
from sssflow.serving.local_triton import ServerState, verified_models
from sssflow.serving.models import predict
from sssflow.storage.contracts import load_contract, save_contract
from sssflow.storage.digest import reference

VOLUME = np.random.default_rng(0).normal(size=(2, 20, 20)).astype(np.float32)


@pytest.fixture
def live(own_server: Callable[..., ServerState], tmp_path: Path) -> Iterator[TritonClient]:
    """A client of a server on `tmp_path/live`."""
    server = own_server()
    with TritonClient(ClientConfig(url=server.grpc_url)) as client:
        yield client


def changed(bundle: Path, out: Path, value: float) -> Path:
    """A repository whose network adds `value` to the logits of class 2."""
    shutil.copytree(bundle.parent, out / "bundle")
    graph = onnx.load(out / "bundle" / "student.onnx")
    for node in graph.graph.node:
        for index, name in enumerate(node.output):
            if name == "logits_bkhw":
                node.output[index] = "former"
    bias = helper.make_tensor("bias", onnx.TensorProto.FLOAT, (1, 3, 1, 1), [0, 0, value])
    graph.graph.initializer.append(bias)
    graph.graph.node.append(helper.make_node("Add", ["former", "bias"], ["logits_bkhw"]))
    onnx.save(graph, out / "bundle" / "student.onnx")
    return written(out)


def written(out: Path) -> Path:
    """The repository of `out/bundle`, whose graph may be anything."""
    path = out / "bundle" / "bundle.json"
    ref = reference(out / "bundle" / "student.onnx")
    save_contract(load_contract(ModelBundle, path).model_copy(update={"onnx": ref}), path)
    repository.run(RepositoryConfig(threads=1), out / "repository", segmenter=path)
    return out / "repository"


def labels(client: TritonClient) -> np.ndarray:
    return client.infer("segmenter", {"volume": VOLUME}, ["labels"])["labels"]


def versions(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "live" / "segmenter_net").iterdir() if p.is_dir())


def test_a_new_version_is_live_and_checked_and_a_second_call_changes_nothing(
    live: TritonClient, student_bundle: Path, tmp_path: Path
) -> None:
    new = changed(student_bundle, tmp_path / "new", 1e3)
    assert not (labels(live) == 2).all()
    (done,) = publish.run(new.as_uri(), str(tmp_path / "live"), live)
    assert (done.model, done.version, done.former_version) == ("segmenter_net", 2, 1)
    assert (labels(live) == 2).all()
    assert publish.run(str(new), str(tmp_path / "live"), live) == ()
    assert check.run(live, tmp_path / "live")


@pytest.mark.parametrize("kind", ["no graph", "nan"])
def test_a_broken_version_goes_back_to_the_former_one(
    live: TritonClient, student_bundle: Path, tmp_path: Path, kind: str
) -> None:
    before = labels(live)
    if kind == "nan":
        new, error = changed(student_bundle, tmp_path / "new", np.nan), InternalError
    else:
        shutil.copytree(student_bundle.parent, tmp_path / "new" / "bundle")
        (tmp_path / "new" / "bundle" / "student.onnx").write_bytes(b"not a graph")
        new, error = written(tmp_path / "new"), DataError
    with pytest.raises(error):
        publish.run(str(new), str(tmp_path / "live"), live)
    np.testing.assert_array_equal(labels(live), before)
    assert versions(tmp_path) == ["1"]
    assert not (tmp_path / "live" / "publish.json").exists()


def test_what_a_killed_publication_left_is_taken_back_by_the_next(
    live: TritonClient, student_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = labels(live)
    new = changed(student_bundle, tmp_path / "new", 1e3)

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(publish, "_smoke", killed)
        patch.setattr(publish, "_take_back", killed)
        with pytest.raises(Killed):
            publish.run(str(new), str(tmp_path / "live"), live)
    assert versions(tmp_path) == ["1", "2"]
    assert publish.recover(tmp_path / "live", live)
    np.testing.assert_array_equal(labels(live), before)
    assert versions(tmp_path) == ["1"]
    assert not publish.recover(tmp_path / "live", live)


def test_a_publication_that_was_killed_after_its_description_stays_live(
    live: TritonClient, student_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, kept = tmp_path / "live" / "publish.json", tmp_path / "journal"
    describe = publish._describe

    def described(*args: object) -> None:
        describe(*args)
        shutil.copy(journal, kept)

    monkeypatch.setattr(publish, "_describe", described)
    new = changed(student_bundle, tmp_path / "new", 1e3)
    publish.run(str(new), str(tmp_path / "live"), live)
    shutil.copy(kept, journal)
    assert not publish.recover(tmp_path / "live", live)
    assert not journal.exists()
    assert (labels(live) == 2).all()
    verified_models(tmp_path / "live")


def test_a_second_publication_does_not_take_back_one_that_is_under_way(
    own_server: Callable[..., ServerState], student_bundle: Path, tmp_path: Path
) -> None:
    folder = str(tmp_path / "live")
    second = changed(student_bundle, tmp_path / "second", 1e3)
    first = changed(student_bundle, tmp_path / "first", -1e3)
    errors: list[str] = []

    class Slow(TritonClient):
        """One that loads a model for so long that somebody else publishes meanwhile."""

        def load(self, model: str) -> None:
            super().load(model)
            with TritonClient(self.config) as other:
                try:
                    publish.run(str(second), folder, other)
                except UnavailableError as error:
                    errors.append(error.what)

    with Slow(ClientConfig(url=own_server().grpc_url)) as client:
        (done,) = publish.run(str(first), folder, client)
        assert done.version == 2
        assert errors == ["Another publication into this repository is under way."]
        verified_models(tmp_path / "live")
        assert not (labels(client) == 2).any()
        assert check.run(client, tmp_path / "live")


def _shifted(nano: Path, out: Path, *, decoder: bytes | None = None) -> Path:
    """A repository whose encoder adds 1 to `embed`; `decoder` takes the place of its decoder."""
    shutil.copytree(nano, out / "bundle")
    graph = onnx.load(out / "bundle" / "128" / "encoder.onnx")
    for node in graph.graph.node:
        for index, name in enumerate(node.output):
            if name == "embed":
                node.output[index] = "former"
    graph.graph.initializer.append(helper.make_tensor("one", onnx.TensorProto.FLOAT, (1,), [1]))
    graph.graph.node.append(helper.make_node("Add", ["former", "one"], ["embed"]))
    onnx.save(graph, out / "bundle" / "128" / "encoder.onnx")
    if decoder is not None:
        (out / "bundle" / "128" / "decoder.onnx").write_bytes(decoder)
    path = out / "bundle" / "bundle.json"
    bundle = load_contract(Sam2Bundle, path)
    files = [reference(path.parent / g.file.uri, base=path.parent) for g in bundle.graphs]
    graphs = [g.model_copy(update={"file": f}) for g, f in zip(bundle.graphs, files, strict=True)]
    save_contract(bundle.model_copy(update={"graphs": tuple(graphs)}), path)
    repository.run(RepositoryConfig(threads=1), out / "repository", sam2=path)
    return out / "repository"


def _chain(client: TritonClient, request: dict[str, np.ndarray]) -> np.ndarray:
    """What encoder and decoder of the server give for a request, with nothing kept."""
    image = {"image": predict.normalised(request["image"])}
    features = client.infer("sam2_encoder", image, predict.FEATURES)
    prompts = [predict.Prompts(request["point_coords"], request["point_labels"], None)]
    feeds = {**features, **predict.decoder_inputs(prompts, 32)}
    return client.infer("sam2_decoder", feeds, ["masks"])["masks"][:, 0]


def test_features_of_another_encoder_are_never_used_after_a_publication_or_its_end(
    triton_environment: TritonEnvironment, nano_bundle: Path, tmp_path: Path
) -> None:
    folder, state = tmp_path / "live", tmp_path / "state"
    made = repository.run(RepositoryConfig(threads=1), folder, sam2=nano_bundle / "bundle.json")
    request = sample_inputs(made.model("sam2_predict"))

    def masks() -> np.ndarray:
        return client.infer("sam2_predict", request, ["masks"])["masks"]

    class Asking(TritonClient):
        """One whose server is asked for masks while a publication is under way."""

        def load(self, model: str) -> None:
            super().load(model)
            if model == "sam2_encoder":
                masks()

    server = local_triton.up(triton_environment, folder, state)
    try:
        with Asking(ClientConfig(url=server.grpc_url)) as client:
            before = masks()
            broken = _shifted(nano_bundle, tmp_path / "broken", decoder=b"not a graph")
            with pytest.raises(DataError):
                publish.run(str(broken), str(folder), client)
            np.testing.assert_array_equal(masks(), before)
            new = _shifted(nano_bundle, tmp_path / "new")
            done = publish.run(str(new), str(folder), client)
            assert [change.model for change in done] == ["sam2_encoder", "sam2_predict"]
            after = masks()
            np.testing.assert_array_equal(after, _chain(client, request))
            assert np.abs(after - before).max() > 0.01
    finally:
        local_triton.down(state, exit_timeout_s=5)


def test_a_changed_file_of_the_source_is_refused_before_anything_is_live(
    live: TritonClient, student_bundle: Path, tmp_path: Path
) -> None:
    new = changed(student_bundle, tmp_path / "new", 1e3)
    with (new / "segmenter" / "1" / "model.py").open("a") as file:
        file.write("#")
    with pytest.raises(DataError, match="another size"):
        publish.run(str(new), str(tmp_path / "live"), live)
    assert versions(tmp_path) == ["1"]


def test_a_server_with_other_weights_fails_the_check_by_the_name_of_the_tensor(
    live: TritonClient, student_bundle: Path, tmp_path: Path
) -> None:
    other = changed(student_bundle, tmp_path / "new", 0.5)
    with pytest.raises(InternalError, match="numbers of the bundle") as caught:
        check.run(live, other)
    assert caught.value.where == "segmenter_net, tensor logits_bkhw"
    assert caught.value.exit_code == 70
