"""What ships: the run's checkpoint with the settings asked for, and another decoder only for the same latents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aether_env.world_model.checkpoint import load_checkpoint, save_checkpoint
from tests.tiny import tiny_components
from training.ship import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_checkpoint(tiny_components(), tmp_path / "run" / "checkpoint", transformer_int8=False)
    return tmp_path / "run"


def with_changed(part: str, folder: Path) -> Path:
    parts = tiny_components()
    with torch.no_grad():
        for parameter in getattr(parts.vae, part).parameters():
            parameter.add_(0.25)
    save_checkpoint(parts, folder, transformer_int8=False)
    return folder


def test_settings_that_are_asked_for_ship_and_the_others_stay(run, tmp_path):
    main(run, tmp_path / "out", step_detail=0.3, clip_sigmas=(1.0,), reconstruct_views=2, reconstruct_refine=True)
    before, after = (load_checkpoint(folder).settings for folder in (run / "checkpoint", tmp_path / "out"))
    assert after.step_detail == 0.3 and after.clip_sigmas == (1.0,)
    assert after.reconstruct_views == 2 and after.reconstruct_refine
    assert after.step_sigmas == before.step_sigmas and after.reconstruct_sigmas == before.reconstruct_sigmas


def test_a_refined_decoder_ships_with_the_run_that_it_belongs_to(run, tmp_path):
    main(run, tmp_path / "out", colour=with_changed("decoder", tmp_path / "refined"))
    shipped, refined = (load_checkpoint(tmp_path / name).vae for name in ("out", "refined"))
    for name, weight in refined.state_dict().items():
        torch.testing.assert_close(shipped.state_dict()[name], weight, atol=1e-3, rtol=1e-3)  # float16
    old = load_checkpoint(run / "checkpoint").vae.state_dict()
    assert any(not torch.equal(old[name], weight) for name, weight in shipped.state_dict().items())


def test_an_autoencoder_of_other_latents_is_refused_and_nothing_is_written(run, tmp_path):
    with pytest.raises(SystemExit, match="encodes to other latents"):
        main(run, tmp_path / "out", colour=with_changed("encoder", tmp_path / "refined"))
    assert not (tmp_path / "out").exists()
