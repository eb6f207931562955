"""Where datasets are read, nothing of this machine is, but what a test asks for."""

import urllib.error
import urllib.request

import numpy as np
import pytest


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No test reaches a network, a user's cache or a user's data by accident."""

    def refuse(request, *_, **__):
        raise urllib.error.URLError(f"no network in tests: {getattr(request, 'full_url', request)}")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("ACERTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ACERTLAB_DATA", raising=False)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
