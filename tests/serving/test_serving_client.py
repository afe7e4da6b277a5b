"""The client never hangs, and finishes a volume whose server was restarted in the middle."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sssflow.errors import DataError, UnavailableError
from sssflow.serving import bench, check, local_triton
from sssflow.serving.client import Job, TritonClient
from sssflow.serving.config import ClientConfig
from sssflow.serving.local_triton import ServerState

Start = Callable[..., ServerState]


def volume(seed: int, slices: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(slices, 20, 20)).astype(np.float32)


def jobs(count: int) -> list[Job]:
    return [Job(i, "segmenter", {"volume": volume(i)}, ("labels",)) for i in range(count)]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_is_not_there_is_given_up_after_the_patience(scheme: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{probe.getsockname()[1]}"
    start = time.monotonic()
    with (
        TritonClient(ClientConfig(url=url, patience_s=1)) as client,
        pytest.raises(UnavailableError, match="cannot be reached"),
    ):
        client.infer("segmenter", {"volume": volume(0)}, ["labels"])
    assert 0.9 < time.monotonic() - start < 30


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_never_answers_is_given_up_at_the_deadline(scheme: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with (
            TritonClient(ClientConfig(url=url, patience_s=0, deadline_s=1)) as client,
            pytest.raises(UnavailableError),
        ):
            client.infer("segmenter", {"volume": volume(0)}, ["labels"])
        assert time.monotonic() - start < 30


def test_an_answer_that_takes_too_long_is_a_missed_deadline(server: ServerState) -> None:
    config = ClientConfig(url=server.grpc_url, deadline_s=0.001)
    with TritonClient(config) as client, pytest.raises(UnavailableError, match="in time"):
        client.infer("segmenter", {"volume": volume(0, 200)}, ["labels"])


def test_a_series_gives_every_answer_once_and_not_more_at_a_time_than_allowed(
    server: ServerState,
) -> None:
    config = ClientConfig(url=server.grpc_url, concurrency=3)
    with TritonClient(config) as client:
        found = list(client.run_all(jobs(20)))
        assert sorted(key for key, _ in found) == list(range(20))
        for key, answer in found[:3]:
            alone = client.infer("segmenter", {"volume": volume(key)}, ["labels"])
            np.testing.assert_array_equal(answer["labels"], alone["labels"])


def test_the_first_refused_request_ends_a_series(server: ServerState) -> None:
    series = jobs(30)
    series[4] = Job(4, "segmenter", {"volume": volume(4) * np.nan}, ("labels",))
    sent = []
    with TritonClient(ClientConfig(url=server.grpc_url)) as client:

        def drawn():
            for job in series:
                sent.append(job.key)
                yield job

        with pytest.raises(DataError, match="refuses"):
            list(client.run_all(drawn()))
    assert len(sent) < 12


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_volume_survives_a_restarted_server_no_slice_twice_none_missing(
    own_server: Start, tmp_path: Path, how: str
) -> None:
    server = own_server()
    ports = (server.http_port, server.grpc_port, server.metrics_port)
    done: list[int] = []
    answers: dict[int, np.ndarray] = {}
    restarted = threading.Event()

    def restart() -> None:
        if how == "killed":
            os.killpg(server.pid, signal.SIGKILL)
        # Else requests under way lose the inner model that they were about to ask.
        local_triton.down(tmp_path / "state", exit_timeout_s=5)
        end_s = time.monotonic() + 120
        while not restarted.is_set():
            try:
                own_server(ports=ports)
                restarted.set()
            except UnavailableError:  # a killed process gives its ports back a moment later
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.2)

    helper = threading.Thread(target=restart)
    config = ClientConfig(url=server.grpc_url, patience_s=300, concurrency=2)
    with TritonClient(config) as client:
        for key, answer in client.run_all(jobs(40)):
            done.append(key)
            answers[key] = answer["labels"]
            if len(done) == 10:
                helper.start()
                time.sleep(0.05)
        helper.join()
        assert restarted.is_set()
        assert sorted(done) == list(range(40))
        for key in (0, 11, 39):
            alone = client.infer("segmenter", {"volume": volume(key)}, ["labels"])
            np.testing.assert_array_equal(answers[key], alone["labels"])


def test_http_takes_over_where_grpc_is_not_there(server: ServerState) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"grpc://127.0.0.1:{probe.getsockname()[1]}"
    config = ClientConfig(
        url=dead, fallback_url=server.http_url, patience_s=0, control_deadline_s=2
    )
    with TritonClient(config) as client:
        assert client.infer("segmenter", {"volume": volume(0)}, ["labels"])["labels"].shape


def test_the_admin_key_is_in_no_description_of_the_settings() -> None:
    assert "hush" not in repr(ClientConfig(admin_header="a", admin_key="hush"))


def test_the_load_of_a_closed_loop_is_described(server: ServerState, served: Path) -> None:
    metrics = f"http://127.0.0.1:{server.metrics_port}"
    with TritonClient(ClientConfig(url=server.grpc_url)) as client:
        load = bench.run(client, served, "sam2_predict", requests=6, metrics_url=metrics)
    assert load.requests == 6
    assert 0 < load.p50_ms <= load.p95_ms <= load.p99_ms
    assert load.batch == 1
    assert load.queue_ratio is not None
    assert load.queue_ratio >= 0


def test_the_served_numbers_are_those_of_the_bundle(server: ServerState, served: Path) -> None:
    with TritonClient(ClientConfig(url=server.grpc_url)) as client:
        found = check.run(client, served)
    assert {item.model for item in found} == {
        "sam2_encoder",
        "sam2_decoder",
        "sam2_memory_attention",
        "sam2_memory_encoder",
        "segmenter_net",
    }
    assert len(found) == 11
