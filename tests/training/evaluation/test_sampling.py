"""Settings of an env step are compared on walks that no test figure is made of."""

import json
from dataclasses import replace

import numpy as np
import pytest

from aether_env.sim import seed_in
from aether_env.world_model.checkpoint import load_checkpoint
from aether_env.world_model.rollout import DreamWorld
from training.evaluation import sampling
from training.evaluation.drift import drift_scores, long_walks


@pytest.fixture
def one_step(monkeypatch):
    monkeypatch.setattr(sampling, "STEPS", (1,))


def test_every_combination_is_judged_as_its_drift_on_validation_walks(one_step, tmp_path, capsys):
    out = tmp_path / "sampling.json"
    sampling.main("mini", walks=1, batch=1, sigmas=("1", "1,0.5"), details=(0.7,), guess=(False,), out=out)
    rows = json.loads(out.read_text())
    assert [(row["step_sigmas"], row["step_detail"], row["step_guess"]) for row in rows] == [
        ([1.0], 0.7, False),
        ([1.0, 0.5], 0.7, False),
    ]
    assert len(capsys.readouterr().out.splitlines()) == 2

    parts = load_checkpoint("mini")
    walks = replace(long_walks(1, parts.settings), split="validation")
    assert walks.plans.scenes.seeds.tolist() == [seed_in("validation", 0)]
    settings = replace(parts.settings, step_sigmas=(1.0, 0.5), step_detail=0.7, step_guess=False)
    alone = drift_scores(DreamWorld(replace(parts, settings=settings)), walks, np.arange(1), 0, last_step=1)
    for name in ("long_psnr_1", "metric_abs_rel_1"):
        assert rows[1]["metrics"][name] == pytest.approx(float(alone[name][0]), abs=1e-6)
    assert rows[0]["metrics"]["long_psnr_1"] != rows[1]["metrics"]["long_psnr_1"]
