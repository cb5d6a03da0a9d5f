from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_env.camera import make_pose, matrix_from_quaternion
from aether_env.raymap import (
    decode_raymap,
    decode_raymap_aetherv1,
    encode_raymap,
    encode_raymap_aetherv1,
    intrinsics_aetherv1,
    pack_raymap,
    signed_expm1,
    signed_log1p,
    unpack_raymap,
)

GOLDENS = Path(__file__).parents[1] / "goldens" / "aetherv1"
CODEC = np.load(GOLDENS / "codec.npz")
CASES = sorted((GOLDENS / "cases").glob("*.npz"))


def random_cameras(seed, batch=(), num_frames=3, height=64, width=96):
    rng = np.random.default_rng(seed)
    pose = make_pose(
        matrix_from_quaternion(rng.normal(size=(*batch, num_frames, 4))), rng.normal(size=(*batch, num_frames, 3)) * 5
    )
    intrinsics = np.zeros((*batch, num_frames, 3, 3))
    # Of the longer side: of a picture 162 high and 2 wide, 0.4 of the width is a focal length that is refused as noise.
    intrinsics[..., 0, 0] = rng.uniform(0.4, 2, (*batch, num_frames)) * max(height, width)
    intrinsics[..., 1, 1] = rng.uniform(0.4, 2, (*batch, num_frames)) * max(height, width)
    intrinsics[..., 0, 2] = rng.uniform(0.3, 0.7, (*batch, num_frames)) * width
    intrinsics[..., 1, 2] = rng.uniform(0.3, 0.7, (*batch, num_frames)) * height
    intrinsics[..., 2, 2] = 1
    return torch.from_numpy(pose), torch.from_numpy(intrinsics)


def encode(pose, intrinsics, height=64, width=96, grid=(8, 12), unit=1.0):
    return encode_raymap(pose, intrinsics, height, width, grid_height=grid[0], grid_width=grid[1], unit=unit)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    grid=st.tuples(st.integers(2, 16), st.integers(2, 16)),
    size=st.tuples(st.integers(2, 200), st.integers(2, 200)),
    unit=st.floats(1e-3, 1e3),
)
def test_decode_undoes_encode_and_encode_undoes_decode(seed, grid, size, unit):
    pose, intrinsics = random_cameras(seed, height=size[0], width=size[1])
    raymap = encode(pose, intrinsics, *size, grid=grid, unit=unit)
    decoded_pose, decoded_intrinsics = decode_raymap(raymap, *size, unit=unit)
    torch.testing.assert_close(decoded_pose, pose, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(decoded_intrinsics, intrinsics, atol=1e-6 * max(size), rtol=1e-6)
    again = encode(decoded_pose, decoded_intrinsics, *size, grid=grid, unit=unit)
    torch.testing.assert_close(again, raymap, atol=1e-7, rtol=1e-7)


def test_skewed_pixels_survive_the_round_trip():
    pose, intrinsics = random_cameras(0)
    intrinsics[..., 0, 1] = 3.0
    decoded_pose, decoded_intrinsics = decode_raymap(encode(pose, intrinsics), 64, 96, unit=1.0)
    torch.testing.assert_close(decoded_pose, pose, atol=1e-9, rtol=0)
    torch.testing.assert_close(decoded_intrinsics, intrinsics, atol=1e-7, rtol=0)


def test_float32_round_trip_keeps_poses_to_a_hundred_thousandth():
    pose, intrinsics = random_cameras(1, num_frames=50)
    decoded, _ = decode_raymap(encode(pose.float(), intrinsics.float()), 64, 96, unit=1.0)
    assert (decoded[..., :3, :3] - pose[..., :3, :3]).abs().max() < 1e-5


def test_directions_are_rays_through_cell_centres_and_origins_are_squashed():
    intrinsics = torch.tensor([[[50.0, 0, 48], [0, 50, 32], [0, 0, 1]]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)[None].clone()
    pose[0, :3, 3] = torch.tensor([1.0, 0.0, -2.0])
    raymap = encode(pose, intrinsics, unit=2.0)[0]
    u = (torch.arange(12, dtype=torch.float64) + 0.5) * 8
    v = (torch.arange(8, dtype=torch.float64) + 0.5) * 8
    torch.testing.assert_close(raymap[0], ((u - 48) / 50).expand(8, 12))
    torch.testing.assert_close(raymap[1], ((v - 32) / 50)[:, None].expand(8, 12))
    torch.testing.assert_close(raymap[2], torch.ones(8, 12, dtype=torch.float64))
    expected = torch.tensor([np.log(6), 0, -np.log(11)], dtype=torch.float64)
    torch.testing.assert_close(raymap[3:].mean((-2, -1)), expected)


def test_a_batch_is_its_items_and_units_belong_to_leading_dimensions():
    pose, intrinsics = random_cameras(2, batch=(3, 2))
    unit = torch.rand(3, 2, dtype=torch.float64) + 0.5
    raymap = encode(pose, intrinsics, unit=unit)
    decoded = decode_raymap(raymap, 64, 96, unit=unit)
    for i in range(3):
        for j in range(2):
            one = encode(pose[i, j], intrinsics[i, j], unit=float(unit[i, j]))
            torch.testing.assert_close(raymap[i, j], one, atol=1e-12, rtol=0)
            single = decode_raymap(one, 64, 96, unit=float(unit[i, j]))
            for all_, item in zip(decoded, single, strict=True):
                torch.testing.assert_close(all_[i, j], item, atol=1e-9, rtol=0)


def test_a_scene_twice_as_large_with_twice_the_unit_has_the_same_raymap():
    pose, intrinsics = random_cameras(3)
    larger = pose.clone()
    larger[..., :3, 3] *= 2
    torch.testing.assert_close(encode(larger, intrinsics, unit=3.0), encode(pose, intrinsics, unit=1.5))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e38])
def test_any_finite_raymap_decodes_to_proper_rotations(scale):
    raymap = torch.randn(200, 2, 6, 4, 6, generator=torch.Generator().manual_seed(0)) * scale
    for pose in (decode_raymap(raymap, 64, 96, unit=1.0)[0], decode_raymap_aetherv1(raymap.clamp(-20, 20))[0]):
        rotation = pose[..., :3, :3]
        assert pose.isfinite().all()
        torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-4, rtol=0)
        assert (torch.linalg.det(rotation) > 0).all()
    intrinsics = decode_raymap(raymap, 64, 96, unit=1.0)[1]
    assert intrinsics.isfinite().all()
    assert (intrinsics[..., 0, 0] > 0).all() and (intrinsics[..., 1, 1] > 0).all()


def test_not_a_number_in_a_raymap_does_not_come_out():
    pose, intrinsics = decode_raymap(torch.full((1, 6, 4, 6), float("nan")), 64, 96, unit=1.0)
    assert pose.isfinite().all() and intrinsics.isfinite().all()


def test_the_decoder_beats_algorithm_1_under_noise():
    pose, intrinsics = random_cameras(4, num_frames=300)
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = 48, 32
    raymap = encode(pose, intrinsics)
    noisy = raymap + 0.05 * torch.randn(raymap.shape, generator=torch.Generator().manual_seed(0), dtype=raymap.dtype)

    def error(found):
        return (found[..., :3, :3] - pose[..., :3, :3]).square().sum((-2, -1)).sqrt().mean()

    assert error(decode_raymap(noisy, 64, 96, unit=1.0)[0]) < 0.8 * error(decode_raymap_aetherv1(noisy)[0])


def test_half_precision_input_is_decoded_in_single_precision():
    pose, intrinsics = random_cameras(5)
    decoded, _ = decode_raymap(encode(pose, intrinsics).to(torch.bfloat16), 64, 96, unit=1.0)
    assert decoded.dtype == torch.float32
    assert (decoded[..., :3, :3] - pose[..., :3, :3]).abs().max() < 0.1


def test_nothing_writes_into_its_inputs():
    pose, intrinsics = random_cameras(6, num_frames=5)
    copies = pose.clone(), intrinsics.clone()
    raymap = encode(pose, intrinsics)
    published = encode_raymap_aetherv1(pose, intrinsics, 64, 96)
    kept = raymap.clone(), published.clone()
    decode_raymap(raymap, 64, 96, unit=1.0)
    decode_raymap_aetherv1(published)
    unpack_raymap(pack_raymap(raymap, "strided"), "strided")
    assert torch.equal(pose, copies[0]) and torch.equal(intrinsics, copies[1])
    assert torch.equal(raymap, kept[0]) and torch.equal(published, kept[1])


@pytest.mark.parametrize("packing, num_frames", [("consecutive", 20), ("strided", 17), ("strided", 41)])
def test_unpack_undoes_pack(packing, num_frames):
    raymap = torch.randn(2, num_frames, 6, 3, 4)
    packed = pack_raymap(raymap, packing)
    assert packed.shape == (2, (num_frames + 3) // 4, 24, 3, 4)
    assert torch.equal(unpack_raymap(packed, packing), raymap)
    assert torch.equal(unpack_raymap(packed, packing, 5), raymap[:, -5:])


def test_consecutive_packing_puts_frame_4j_plus_i_into_channel_group_i_of_step_j():
    raymap = torch.arange(8.0)[:, None, None, None].expand(8, 6, 2, 2)
    assert pack_raymap(raymap)[:, ::6, 0, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_strided_packing_pads_with_the_first_three_frames_and_strides():
    raymap = torch.arange(17.0)[:, None, None, None].expand(17, 6, 2, 2)
    padded = [0, 1, 2, *range(17)]
    expected = [[padded[g * 5 + j] for g in range(4)] for j in range(5)]
    assert pack_raymap(raymap, "strided")[:, ::6, 0, 0].tolist() == expected


@pytest.mark.parametrize("path", "abc")
def test_the_published_codec_agrees_with_the_reference(path):
    height, width = (int(n) for n in CODEC[f"{path}_size_hw"])
    pose, intrinsics = (torch.from_numpy(CODEC[f"{path}_{name}"]) for name in ("pose", "intrinsic"))
    raymap = encode_raymap_aetherv1(pose, intrinsics, height, width, dmax=float(CODEC[f"{path}_dmax"]))
    tolerance = 1e-2 if CODEC[f"{path}_raymap"].dtype == np.float16 else 1e-5
    np.testing.assert_allclose(raymap, CODEC[f"{path}_raymap"], atol=tolerance)
    decoded = decode_raymap_aetherv1(raymap)
    for found, name in zip(decoded, ("decoded_pose", "half_fov_x", "half_fov_y"), strict=True):
        np.testing.assert_allclose(found, CODEC[f"{path}_{name}"], atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_dreamed_raymaps_decode_as_in_the_published_code(case):
    data = np.load(case)
    decoded = decode_raymap_aetherv1(torch.from_numpy(data["out_raymap"]))
    for found, name in zip(decoded, ("out_camera_pose", "out_half_fov_x", "out_half_fov_y"), strict=True):
        np.testing.assert_allclose(found, data[name], atol=1e-5)
    if "raymap" in data:
        pose, intrinsics = torch.from_numpy(data["camera_pose"]), torch.from_numpy(data["intrinsic"])
        encoded = encode_raymap_aetherv1(pose, intrinsics, 64, 96, dmax=float(data["dmax"]))
        np.testing.assert_allclose(encoded, data["raymap"], atol=1e-5)


def test_published_intrinsics_have_one_focal_length_the_mean_of_both():
    angle = torch.tensor([0.6]), torch.tensor([0.4])
    intrinsics = intrinsics_aetherv1(*angle, 64, 96)[0]
    focal = (48 / np.tan(0.6) + 32 / np.tan(0.4)) / 2
    np.testing.assert_allclose(intrinsics, [[focal, 0, 48], [0, focal, 32], [0, 0, 1]], rtol=1e-6)


@given(st.floats(-1e6, 1e6))
def test_signed_logarithm_and_exponential_undo_each_other(x):
    value = torch.tensor(x, dtype=torch.float64)
    torch.testing.assert_close(signed_expm1(signed_log1p(value)), value, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p, k: encode(p[:, :3], k), "world_from_camera must have shape"),
        (lambda p, k: encode(p, k[:1]), "intrinsics must have shape"),
        (lambda p, k: encode(p, k, unit=0.0), "unit must be positive"),
        (lambda p, k: encode(p, k, grid=(0, 4)), "at least 1 x 1"),
        (lambda p, k: decode_raymap(torch.zeros(3, 5, 4, 4), 64, 96, unit=1.0), "raymap must have shape"),
        (lambda p, k: decode_raymap(torch.zeros(3, 6, 1, 4), 64, 96, unit=1.0), "h, w >= 2"),
        (lambda p, k: encode_raymap_aetherv1(p, k, 4, 96), "smaller than one cell"),
        (lambda p, k: pack_raymap(torch.zeros(17, 6, 2, 2)), "multiple of 4"),
        (lambda p, k: pack_raymap(torch.zeros(16, 6, 2, 2), "strided"), "4 k \\+ 1"),
        (lambda p, k: pack_raymap(torch.zeros(16, 6, 2, 2), "zigzag"), "packing must be"),
        (lambda p, k: unpack_raymap(torch.zeros(4, 6, 2, 2)), "packed must have shape"),
        (lambda p, k: unpack_raymap(torch.zeros(4, 24, 2, 2), num_frames=17), "num_frames must be in"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(*random_cameras(7))
