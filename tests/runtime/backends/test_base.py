# SPDX-License-Identifier: Apache-2.0
"""A prompt's embeddings: the pictures' features stand at its visual tokens."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.echo import Echo
from tests.support.manifests import toy_manifest


@pytest.fixture
def echo() -> Echo:
    """Embeds an id as rows of itself."""
    manifest = toy_manifest("deepseek_vl2")
    return Echo(manifest.language_model, manifest.policy)


def test_features_stand_at_the_visual_tokens(echo: Echo) -> None:
    features = np.array([[10.0], [20.0]], np.float32).repeat(echo.info.hidden_size, axis=1)
    embeds = echo.embed(np.array([5, 9, 9, 6]), np.array([1, 2]), features)
    assert embeds.shape == (4, echo.info.hidden_size)
    assert embeds[:, 0].tolist() == embeds[:, -1].tolist() == [5, 10, 20, 6]


def test_without_pictures_there_are_words_alone(echo: Echo) -> None:
    assert echo.embed(np.array([5, 6]))[:, 0].tolist() == [5, 6]
