"""A bundle of SAM-2 graphs in S3: enough for Triton, which holds the graphs itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3_server import Server
from sssflow.contracts.sam2_graphs import SAM2_BUNDLE_FILE, Sam2Bundle
from sssflow.errors import DataError, UsageError
from sssflow.sam.config import OnnxConfig, SamConfig
from sssflow.sam.onnx_backend import load_onnx_promptable, read_bundle
from sssflow.storage.contracts import load_contract
from sssflow.storage.places import open_place


@pytest.fixture
def uri(server: Server, s3_keys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    return f"s3://bucket/bundles/{tmp_path.name}"


def config(backend: str, bundle: str) -> SamConfig:
    return SamConfig(backend=backend, input_size=128, onnx=OnnxConfig(bundle=bundle))


def test_the_description_alone_is_read_from_s3(nano_bundle: Path, uri: str) -> None:
    open_place(uri).put_file(nano_bundle / SAM2_BUNDLE_FILE, SAM2_BUNDLE_FILE)
    expected = load_contract(Sam2Bundle, nano_bundle / SAM2_BUNDLE_FILE)
    assert read_bundle(config("triton", f"{uri}/")) == expected


def test_an_address_without_a_bundle_says_how_to_bring_it_there(uri: str) -> None:
    with pytest.raises(DataError, match="sssflow data push"):
        read_bundle(config("triton", uri))


def test_onnx_runtime_needs_the_graphs_on_this_machine(nano_bundle: Path, uri: str) -> None:
    open_place(uri).put_file(nano_bundle / SAM2_BUNDLE_FILE, SAM2_BUNDLE_FILE)
    with pytest.raises(UsageError, match=r"sam\.backend to triton"):
        load_onnx_promptable(config("onnx", uri))
