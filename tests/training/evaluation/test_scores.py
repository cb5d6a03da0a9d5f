"""A broken checkpoint gets no numbers."""

import numpy as np
import pytest
import torch

from aether_env.world_model.pipeline import CLIP_FRAMES, AetherPipeline
from aether_env.world_model.rollout import DreamWorld
from tests.tiny import tiny_components
from training.evaluation import drift, scores
from training.evaluation.walks import WalkSet


@pytest.fixture(scope="module")
def broken():
    parts = tiny_components()
    with torch.no_grad():
        parts.transformer.proj_out.weight.fill_(torch.nan)
    return parts


def test_dreams_that_are_not_numbers_are_refused_by_name_instead_of_scored(broken):
    walks = WalkSet(2, CLIP_FRAMES, broken.settings)
    walk = walks.draw(np.arange(2))
    world, pipeline = DreamWorld(broken), AetherPipeline(broken)
    with pytest.raises(ValueError, match=r"dreamed depth is NaN or infinite in test clips \[0, 1\]"):
        scores.rollout_scores(world, walk, 0)
    with pytest.raises(ValueError, match="predicted depth is NaN"):
        scores.prediction_scores(pipeline, walk, 0)
    with pytest.raises(ValueError, match="NaN"):
        scores.reconstruction_scores(pipeline, walk, 0)
    with pytest.raises(ValueError, match="depth dreamed at step 1 is NaN"):
        drift.drift_scores(world, walks, np.arange(2), 0, last_step=1)
