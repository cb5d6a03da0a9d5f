"""Settings: every number has a range, and what a stage would not heed is refused."""

import dataclasses
import math
import typing
from dataclasses import replace

import pytest

from training.config import (
    AetherV1Config,
    AetherV1StageConfig,
    AutoencoderConfig,
    DataConfig,
    DecodedConfig,
    DecoderConfig,
    OptimizerConfig,
    ParallelConfig,
    TransformerConfig,
    WatchConfig,
)
from training.recipes import RECIPES
from training.simulate import chunk_seeds

SETTINGS = [
    *(AetherV1Config(), AetherV1StageConfig(), AutoencoderConfig(), DataConfig(), DecodedConfig(), DecoderConfig()),
    *(OptimizerConfig(), ParallelConfig(), TransformerConfig(), WatchConfig(peak_tflops=1.0)),
    replace(RECIPES["debug_cpu"](), minutes=1.0),
]
"""One of each kind, without a number left out."""


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def with_one_changed(value, number):
    """Yield copies of a setting in each of which one number is replaced."""
    if is_number(value):
        yield number
    elif isinstance(value, tuple):
        for i, part in enumerate(value):
            yield from ((*value[:i], changed, *value[i + 1 :]) for changed in with_one_changed(part, number))
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from ({**value, key: changed} for changed in with_one_changed(part, number))


NUMBERS = [
    pytest.param(settings, field.name, id=f"{type(settings).__name__}.{field.name}")
    for settings in SETTINGS
    for field in dataclasses.fields(settings)
    if any(with_one_changed(getattr(settings, field.name), 0.5))
]


def test_every_field_that_may_hold_a_number_is_looked_at():
    looked = {(type(p.values[0]), p.values[1]) for p in NUMBERS}
    for settings in SETTINGS:
        for name, hint in typing.get_type_hints(type(settings)).items():
            kinds = {hint, *typing.get_args(hint)} - {Ellipsis}
            if kinds & {int, float} or any(typing.get_origin(kind) is tuple for kind in kinds - {hint}):
                assert (type(settings), name) in looked
    assert len(looked) > 60


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1e9])
@pytest.mark.parametrize(("settings", "name"), NUMBERS)
def test_no_setting_takes_a_number_that_is_none_or_below_its_range(settings, name, number):
    if (name, number) == ("flow_mean", -1e9):
        return  # a logit: it may be any number
    for wrong in with_one_changed(getattr(settings, name), number):
        with pytest.raises(ValueError, match=name) as error:
            replace(settings, **{name: wrong})
        assert str(number) in str(error.value)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        *((AutoencoderConfig(), name) for name in ["still_share"]),
        *((DataConfig(), name) for name in ("height", "width", "fps")),
        *((TransformerConfig(), name) for name in ("walker_start", "memory_share", "path_share", "first_ray_share")),
        *((TransformerConfig(), name) for name in ("find_pure_share", "follow_pure_share", "history_noise")),
        *((TransformerConfig(), name) for name in ("walker_detail", "mask_shares", "walker_sigmas", "guess_share")),
        *((DecoderConfig(), name) for name in ["adversarial_start"]),
        *((OptimizerConfig(), name) for name in ("betas", "ema", "decay_share", "rise_share")),
        *((AetherV1Config(), name) for name in ("path_share", "mask_shares")),
        *((DecodedConfig(), name) for name in ("share", "norm")),
    ],
)
def test_shares_and_what_a_checkpoint_bounds_have_an_upper_end(settings, name):
    for wrong in with_one_changed(getattr(settings, name), 4808):
        with pytest.raises(ValueError, match=name):
            replace(settings, **{name: wrong})


def test_lists_of_a_fixed_length_take_no_other():
    for settings, name in ((TransformerConfig(), "mask_shares"), (OptimizerConfig(), "betas")):
        with pytest.raises(ValueError, match=name):
            replace(settings, **{name: (1.0, 0.0, 0.0)[: 3 if name == "mask_shares" else 1]})


def test_every_seed_that_is_allowed_has_clips_to_the_end_of_a_run():
    config = RECIPES["debug_cpu"]()
    for seed in (0, 255):
        run = replace(config, seed=seed)
        assert len(chunk_seeds(run.data, 10_000, 7, 8, run.seed)) == run.data.chunk_clips
    for seed in (-1, 256):
        with pytest.raises(ValueError, match=rf"seed must be in \[0, 255\], got {seed}"):
            replace(config, seed=seed)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:3"])
def test_devices_are_the_cpu_all_gpus_or_one(device):
    assert replace(RECIPES["debug_cpu"](), device=device).device == device


@pytest.mark.parametrize("device", ["", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "mps", "gpu"])
def test_other_devices_are_refused(device):
    with pytest.raises(ValueError, match="device must be"):
        replace(RECIPES["debug_cpu"](), device=device)


@pytest.mark.parametrize(
    ("recipe", "part", "change", "message"),
    [
        ("finetune", "aetherv1", {"objective": AetherV1Config(prediction="flow")}, "watch.sheet_every must .*got 500"),
        ("mini_autoencoder", "parallel", {"activation_checkpointing": True}, "parallel.activation_checkpointing"),
        ("mini_decoder", "parallel", {"activation_checkpointing": True}, "parallel.activation_checkpointing"),
        ("aetherv1_paper", "data", {"sources": ("shards=clips",)}, "data.sources .*aetherv1.sources"),
    ],
)
def test_what_a_stage_would_not_heed_is_refused(recipe, part, change, message):
    config = RECIPES[recipe]()
    with pytest.raises(ValueError, match=message):
        replace(config, **{part: replace(getattr(config, part), **change)})


def test_the_stages_with_a_transformer_may_compute_activations_twice():
    for recipe in ("mini_1gpu", "aetherv1_8gpu"):
        config = RECIPES[recipe]()
        replace(config, parallel=ParallelConfig(activation_checkpointing=True))


def test_a_scene_family_that_is_none_is_refused():
    assert DataConfig(family="room").family == "room"
    with pytest.raises(ValueError, match="family must be one of room, .*got 'castle'"):
        DataConfig(family="castle")
