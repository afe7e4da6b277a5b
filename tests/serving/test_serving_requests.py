"""Good requests give the numbers of the models; bad ones a clear error and a living server."""

from __future__ import annotations

import http.client
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sssflow.errors import DataError
from sssflow.networks.predict import predict_labels
from sssflow.networks.trained import load_model
from sssflow.serving import bench
from sssflow.serving.client import TritonClient
from sssflow.serving.config import ClientConfig
from sssflow.serving.local_triton import ServerState, ready_models
from sssflow.volume.intensity import normalise

SIDE = 128
OUTPUTS = ("masks", "iou", "object_score", "all_masks", "all_iou")


def image(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), np.uint8)


def prompts(*objects: list[tuple[float, float, int]], seed: int = 0) -> dict[str, NDArray[Any]]:
    """A request; each object is a list of (x, y, label)."""
    flat = [point for item in objects for point in item]
    return {
        "image": image(seed),
        "point_coords": np.array([p[:2] for p in flat], np.float32).reshape(-1, 2),
        "point_labels": np.array([p[2] for p in flat], np.int32),
        "point_counts": np.array([len(item) for item in objects], np.int32),
    }


BOX = [(20.0, 30.0, 2), (90.0, 100.0, 3)]
POINT = [(64.0, 64.0, 1)]


def test_predict_gives_what_the_graphs_give(server: ServerState, nano_bundle: Path) -> None:
    from sssflow.sam.onnx_backend import OnnxRunner

    runner = OnnxRunner(
        {name: nano_bundle / str(SIDE) / f"{name}.onnx" for name in ("encoder", "decoder")},
        threads=1,
    )
    mean = np.array((0.485, 0.456, 0.406), np.float32)
    deviation = np.array((0.229, 0.224, 0.225), np.float32)
    pixels = (image().astype(np.float32) / 255 - mean) / deviation
    features = runner.run("encoder", {"image": pixels.transpose(2, 0, 1)[None]})
    true = runner.run(
        "decoder",
        {
            **features,
            "point_coords": np.array([[[20, 30], [90, 100], [0, 0]]], np.float32),
            "point_labels": np.array([[2, 3, -1]], np.int32),
            "mask_input": np.zeros((1, 1, 32, 32), np.float32),
            "has_mask": np.zeros(1, np.float32),
        },
    )
    with TritonClient(ClientConfig(url=server.grpc_url)) as client:
        found = client.infer("sam2_predict", prompts(BOX), OUTPUTS)
    np.testing.assert_allclose(found["all_masks"], true["masks"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["masks"], true["masks"][:, 0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["iou"], true["iou"][:, 0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["object_score"], true["object_score"][:, 0], atol=1e-4)


def test_ragged_prompts_get_the_masks_that_each_gets_alone(client: TritonClient) -> None:
    objects = [BOX, POINT, [*BOX, (50.0, 60.0, 0)], POINT, *([POINT] * 9)]
    together = client.infer("sam2_predict", prompts(*objects), OUTPUTS)
    assert together["masks"].shape == (13, 32, 32)
    for index in (0, 1, 2, 12):
        alone = client.infer("sam2_predict", prompts(objects[index]), OUTPUTS)
        for name in OUTPUTS:
            np.testing.assert_allclose(together[name][index], alone[name][0], rtol=0, atol=1e-4)


def test_a_mask_alone_is_a_prompt_and_changes_the_answer(client: TritonClient) -> None:
    mask = np.full((2, 1, 32, 32), -8, np.float32)
    mask[:, 0, 8:20, 8:20] = 8
    given = prompts([], POINT) | {"mask_input": mask, "has_mask": np.array([1, 0], np.float32)}
    found = client.infer("sam2_predict", given, ["masks"])["masks"]
    alone = client.infer("sam2_predict", prompts(POINT), ["masks"])["masks"]
    np.testing.assert_allclose(found[1], alone[0], rtol=0, atol=1e-4)
    assert np.abs(found[0] - alone[0]).max() > 1


def settled(metrics: str) -> tuple[float, float]:
    """Images encoded and decoder calls so far; Triton counts a request after it has answered it."""
    seen: list[tuple[float, float]] = []
    while len(seen) < 5 or len(set(seen[-5:])) > 1:
        time.sleep(0.2)
        encoded = bench.counters(metrics, "sam2_encoder")["inferences"]
        seen.append((encoded, bench.counters(metrics, "sam2_decoder")["executions"]))
    return seen[-1]


def test_further_prompts_on_an_image_do_not_encode_it_again(server: ServerState) -> None:
    metrics = f"http://127.0.0.1:{server.metrics_port}"
    encoded, decoded = settled(metrics)
    with TritonClient(ClientConfig(url=server.grpc_url)) as client:
        for prompt in (BOX, POINT, POINT, POINT):
            client.infer("sam2_predict", prompts(prompt, seed=77), ["masks"])
    assert settled(metrics) == (encoded + 1, decoded + 4)


def test_the_segmenter_gives_the_labels_of_pytorch(client: TritonClient, student: Path) -> None:
    volume = (100 * np.random.default_rng(0).normal(size=(11, 40, 50))).astype(np.float32)
    model = load_model(student)
    rule = model.description.preprocessing
    true = predict_labels(model.net.eval(), normalise(volume, rule.intensity), rule)
    found = client.infer("segmenter", {"volume": volume}, ["labels", "logits"])
    np.testing.assert_array_equal(found["labels"], true)
    assert found["logits"].shape == (11, 3, 16, 24)


def _bad() -> dict[str, tuple[str, dict[str, NDArray[Any]], str]]:
    good = prompts(BOX)
    nan = np.full_like(good["point_coords"], np.nan)
    large = np.zeros((100 << 20) // 4, np.float32).reshape(1, -1, 1024)
    return {
        "shape": ("sam2_predict", good | {"image": image()[:64]}, "image"),
        "type": (
            "sam2_predict",
            good | {"point_counts": np.array([2.0], np.float32)},
            "point_counts",
        ),
        "nan": ("sam2_predict", good | {"point_coords": nan}, "not finite"),
        "empty": ("segmenter", {"volume": np.empty((0, 4, 4), np.float32)}, "voxels"),
        "100 MB": ("sam2_predict", good | {"mask_input": large[:, :, None]}, "mask_input"),
        "0 prompts": ("sam2_predict", prompts(), "1 to 32 objects"),
        "33 prompts": ("sam2_predict", prompts(*[POINT] * 33), "1 to 32 objects"),
        "unknown model": ("nothing", good, "unknown model"),
    }


@pytest.mark.parametrize("kind", sorted(_bad()))
def test_a_bad_request_is_refused_with_the_reason_and_the_server_stays_ready(
    client: TritonClient, server: ServerState, kind: str
) -> None:
    model, inputs, said = _bad()[kind]
    with pytest.raises(DataError) as caught:
        client.infer(model, inputs, ["masks" if model != "segmenter" else "labels"])
    if kind != "100 MB":  # HTTP refuses a body of that size before it knows its tensors
        assert said in caught.value.found
    assert all(ready_models(server).values())
    good = client.infer("sam2_predict", prompts(BOX), ["masks"])["masks"]
    assert np.isfinite(good).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"point_counts": np.array([3], np.int32)}, "add up to 3"),
        ({"point_counts": np.array([-1, 3], np.int32)}, "0 to 32 points"),
        ({"point_labels": np.array([2, 7], np.int32)}, "expected 0, 1, 2 or 3"),
        ({"has_mask": np.ones(1, np.float32)}, "one mask per object"),
        ({"mask_input": np.full((1, 1, 32, 32), np.inf, np.float32)}, "not finite"),
    ],
)
def test_prompts_that_do_not_fit_together_are_refused(client, change, said) -> None:
    with pytest.raises(DataError) as caught:
        client.infer("sam2_predict", prompts(BOX) | change, ["masks"])
    assert said in caught.value.found


def test_an_object_without_any_prompt_is_refused(client: TritonClient) -> None:
    with pytest.raises(DataError) as caught:
        client.infer("sam2_predict", prompts(BOX, []), ["masks"])
    assert "object 1" in caught.value.found


def test_malformed_http_never_takes_the_server_down(server: ServerState) -> None:
    rng = random.Random(11)
    paths = ("/v2", "/v2/models/sam2_predict", "/v2/models/segmenter/infer", "/v2/%00", "/metrics")
    for number in range(200):
        link = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
        body = rng.randbytes(rng.randrange(200)) if number % 2 else b'{"inputs": [{"name": 1}]}'
        length = str(rng.choice((-1, 0, 5, 10**9)))
        try:
            link.request(
                rng.choice(("GET", "POST", "PUT")),
                rng.choice(paths),
                body=body,
                headers={"Inference-Header-Content-Length": length},
            )
            assert link.getresponse().status >= 200
        finally:
            link.close()
    assert all(ready_models(server).values())
