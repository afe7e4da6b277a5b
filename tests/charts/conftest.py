"""Helm for the tests of the charts."""

from __future__ import annotations

from pathlib import Path

import pytest
from charts_rendering import Renderer


@pytest.fixture(scope="session")
def charts(helm: Path) -> Renderer:
    """Renders a chart with the real Helm."""
    return Renderer(helm)
