import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_env.camera import se3_exp
from aether_env.conventions import FAR_DEPTH
from training.clip_coding import MAX_ABOUT, Member, decode_clip, encode_clip
from training.clips import Clip, ClipError
from training.record import main as record_command
from training.shards import open_shards, read_clip, scan_shard, validate_shards, write_shard, write_shards

ROOT = Path(__file__).parents[2]
FIELDS = ("rgb", "valid", "moving", "world_from_camera", "intrinsics")


def make_clip(
    seed: int = 0, frames: int = 3, height: int = 5, width: int = 7, near: float = 0.1, far: float = 90.0
) -> Clip:
    rng = np.random.default_rng(seed)
    shape = (frames, height, width)
    intrinsics = np.array([[width, 0, width * (0.3 + 0.4 * rng.random())], [0, width, height / 2], [0, 0, 1.0]])
    return Clip(
        rgb=rng.integers(256, size=(*shape, 3), dtype=np.uint8),
        depth=(near * (far / near) ** rng.random(shape)).astype(np.float32),
        valid=rng.random(shape) < 0.7,
        moving=rng.random(shape) < 0.3,
        world_from_camera=se3_exp(rng.normal(size=(frames, 6))),
        intrinsics=np.tile(intrinsics, (frames, 1, 1)),
        fps=24.0,
        name=f"noise {seed}",
    )


def assert_clips_close(read: Clip, written: Clip) -> None:
    """Equal to the bit, but for depth: that within the stated error, and where not valid 0 or the sky."""
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(read, field), getattr(written, field), strict=True)
    assert (read.fps, read.name) == (written.fps, written.name)
    surface = written.depth[written.valid].astype(np.float64)
    sky = ~written.valid & (written.depth >= 0.999 * FAR_DEPTH)
    assert read.depth.dtype == np.float32
    np.testing.assert_array_equal(read.depth[~read.valid], np.where(sky, FAR_DEPTH, 0.0)[~read.valid])
    if len(surface):
        stated = np.log(surface.max() / surface.min()) / 131064 + 2e-7  # and float32
        assert np.abs(read.depth[read.valid] / surface - 1).max() <= stated


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    """Three clips."""
    folder = tmp_path_factory.mktemp("shards")
    return write_shards(folder, map(make_clip, range(3)))[0]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16), frames=st.integers(1, 4), height=st.integers(1, 9), width=st.integers(1, 9),
    near=st.floats(1e-3, 10), span=st.floats(1, 1e4), hidden=st.booleans(),
)  # fmt: skip
def test_a_clip_comes_back_to_the_bit_and_depth_within_the_stated_error(
    seed, frames, height, width, near, span, hidden
):
    clip = make_clip(seed, frames, height, width, near, near * span)
    if hidden:
        unknown = np.choose(np.arange(width) % 4, [np.nan, -1, np.inf, FAR_DEPTH]).astype(np.float32)
        clip = replace(clip, valid=np.zeros_like(clip.valid), depth=np.broadcast_to(unknown, clip.depth.shape).copy())
    members = {ending: Member(len(d), lambda at, n, d=d: d[at : at + n]) for ending, d in encode_clip(clip).items()}
    assert_clips_close(decode_clip(members), clip)


def test_jpeg_keeps_everything_but_the_last_colours_and_is_smaller(tmp_path):
    ramp = np.linspace(0, 255, 64 * 96).reshape(1, 64, 96, 1)
    clip = replace(make_clip(0, 2, 64, 96), rgb=np.broadcast_to(ramp, (2, 64, 96, 3)).astype(np.uint8))
    clip.rgb[..., 0] //= 2
    clip.rgb[..., 2] = 200
    for codec in ("png", "jpeg"):
        write_shard(tmp_path / f"{codec}.tar", [clip], rgb=codec)
    read = read_clip(tmp_path / "jpeg.tar", 0)
    assert np.abs(read.rgb.astype(int) - clip.rgb).mean() < 1.5
    assert_clips_close(replace(read, rgb=clip.rgb), clip)
    noise = make_clip(0, 2, 64, 96)
    assert len(encode_clip(noise, "jpeg")["rgb.mjpeg"]) < 0.6 * len(encode_clip(noise)["rgb.pngs"])


def test_some_frames_are_read_without_the_others(shard):
    row = scan_shard(shard).rows[1]
    whole, part = make_clip(1), read_clip(shard, int(row["offset"]), np.array([2, 0]))
    assert_clips_close(
        replace(part, depth=part.depth), replace(whole, **{f: getattr(whole, f)[[2, 0]] for f in (*FIELDS, "depth")})
    )
    with pytest.raises(ClipError, match=r"0\.\.2"):
        read_clip(shard, int(row["offset"]), np.array([3]))


def test_webdataset_reads_the_shards(shard):
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset([str(shard)], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["00000000", "00000001", "00000002"]
    assert json.loads(samples[2]["json"])["name"] == "noise 2"
    png = samples[0]["rgb.pngs"]
    assert png.count(b"\x89PNG\r\n\x1a\n") == 3


def test_the_same_clips_give_the_same_bytes(shard, tmp_path):
    assert write_shards(tmp_path, map(make_clip, range(3)))[0].read_bytes() == shard.read_bytes()


def test_clips_are_spread_over_shards_and_keep_their_order(tmp_path):
    paths = write_shards(tmp_path, map(make_clip, range(5)), clips_per_shard=2)
    shards = open_shards(tmp_path)
    assert [shard.path for shard in shards] == paths and [len(shard) for shard in shards] == [2, 2, 1]
    names = [read_clip(shard.path, int(offset)).name for shard in shards for offset in shard.rows["offset"]]
    assert names == [f"noise {i}" for i in range(5)]
    assert validate_shards(tmp_path) == (3, 5, [])


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.tar"
    write_shard(path, [make_clip(7)])
    before = path.read_bytes()

    def failing():
        yield make_clip(0)
        raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError):
        write_shard(path, failing())
    with pytest.raises(ValueError, match="fps"):
        write_shard(tmp_path / "b.tar", [replace(make_clip(0), fps=-1.0)])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_no_shard(tmp_path):
    code = """
import os, pathlib, signal, sys
import numpy as np
from training.clips import Clip
from training.shards import write_shard
def clips():
    pose, intrinsics = np.eye(4)[None], np.array([[[9.0, 0, 4], [0, 9, 4], [0, 0, 1]]])
    no = np.zeros((1, 8, 8), bool)
    yield Clip(rgb=np.zeros((1, 8, 8, 3), np.uint8), depth=np.ones((1, 8, 8), np.float32), valid=no, moving=no,
               world_from_camera=pose, intrinsics=intrinsics, fps=8.0, name="a")
    os.kill(os.getpid(), signal.SIGKILL)
write_shard(pathlib.Path(sys.argv[1]) / "a.tar", clips())
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1 and not list(tmp_path.glob("*.tar"))
    write_shard(tmp_path / "a.tar", [make_clip(0)])
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


# ---------------------------------------------------------------- damage


def readable(path: Path) -> list[Clip]:
    """Return all clips that can be read; whatever is wrong with the file, nothing but ClipError may come."""
    found = []
    for offset in scan_shard(path).rows["offset"]:
        try:
            found.append(read_clip(path, int(offset)))
        except ClipError as error:
            assert str(path) in str(error) and error.reason == "damaged"
    return found


def test_a_shard_cut_at_any_byte_gives_the_clips_before_and_is_named(shard, tmp_path):
    data = shard.read_bytes()
    with tarfile.open(shard) as tar:
        ends = [m.offset_data + m.size for m in tar if m.name.endswith(".safetensors")]
        mark = ends[-1] + -ends[-1] % 512 + 1024
    path = tmp_path / "cut.tar"
    for cut in {*range(0, len(data), 97), *ends, *(end - 1 for end in ends), mark - 1, mark, mark + 1}:
        path.write_bytes(data[:cut])
        found = scan_shard(path)
        assert len(found) == sum(end <= cut for end in ends)
        assert bool(found.problems) == (cut < mark)
        assert all(problem.startswith(str(path)) for problem in found.problems)
    path.write_bytes(data[: ends[1] + 300])
    assert [clip.name for clip in readable(path)] == ["noise 0", "noise 1"]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_gives_the_truth_or_an_error_never_another_clip(shard, tmp_path_factory, data):
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        used = [range(m.offset, m.offset_data + m.size) for m in tar]
    place = data.draw(st.sampled_from(used).flatmap(st.sampled_from))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("flip") / "a.tar"
    path.write_bytes(content)
    found = readable(path)
    for clip in found:
        assert_clips_close(clip, make_clip(int(clip.name.split()[1])))
    # A bit in the padding between members, or in a field of the header that nobody reads, changes nothing.
    assert len(found) == 3 or validate_shards(path).problems


def rewrite(path: Path, change, source: Path) -> Path:
    """Copy a shard member by member; `change(info, data)` returns what to write instead."""
    with tarfile.open(source) as old, tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as new:
        for member in old:
            reader = old.extractfile(member)
            assert reader is not None
            info, data = change(member, reader.read())
            info.size = len(data)
            new.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


@pytest.mark.parametrize(
    "name, kind",
    [
        ("../00000001.json", tarfile.REGTYPE),
        ("/etc/00000001.json", tarfile.REGTYPE),
        ("a/00000001.json", tarfile.REGTYPE),
        ("00000001.pickle", tarfile.REGTYPE),
        ("00000001.json", tarfile.SYMTYPE),
        ("00000001.json", tarfile.LNKTYPE),
        ("00000001.json", tarfile.CHRTYPE),
        ("00000001.json", tarfile.FIFOTYPE),
        ("00000001.json", tarfile.DIRTYPE),
        ("00000000.json", tarfile.REGTYPE),
    ],
)
def test_members_that_are_no_part_of_a_clip_end_the_shard_and_are_named(shard, tmp_path, name, kind):
    def change(info, data):
        if info.name == "00000001.json":
            info.name, info.type, info.linkname = name, kind, "/etc/passwd"
        return info, data if info.isreg() else b""

    path = rewrite(tmp_path / "a.tar", change, shard)
    assert [clip.name for clip in readable(path)] == ["noise 0"]
    (problem,) = scan_shard(path).problems
    assert name.rstrip("/").split("/")[-1].split(".")[0] in problem


def lie(source: Path, path: Path, **changes) -> Path:
    """Copy a shard whose second clip's JSON says something else, with a checksum that is right."""

    def change(info, data):
        if info.name == "00000001.json":
            about = json.loads(data) | changes
            about.pop("crc32")
            about["crc32"] = zlib.crc32(json.dumps(about, sort_keys=True, separators=(",", ":")).encode())
            data = json.dumps(about).encode()
        return info, data

    return rewrite(path, change, source)


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": 2},
        {"frames": 2**40},
        {"frames": 10**400},
        {"frames": -3},
        {"frames": 3.0},
        {"frames": True},
        {"height": 7, "width": 5},
        {"height": 50_000, "width": 50_000},
        {"height": 6},
        {"width": 0},
        {"fps": 0.0},
        {"fps": float("nan")},
        {"fps": "24"},
        {"depth_range": [0.0, 1.0]},
        {"depth_range": [2.0, 1.0]},
        {"depth_range": [1.0, float("inf")]},
        {"depth_range": 3},
        {"codec": "jpeg"},
        {"codec": "pickle"},
        {"codec": ["png"]},
        {"rgb": {"bytes": [1, 1, 1], "crc32": [0, 0, 0]}},
        {"rgb": {"bytes": [2**62, 1, 1], "crc32": [0, 0, 0]}},
        {"rgb": {"bytes": [-5, 5, 5], "crc32": [0, 0, 0]}},
        {"depth": []},
        {"arrays": None},
        {"name": 5},
        {"name": ""},
        {"version": 2},
        {"format": "photos"},
    ],
    ids=str,
)
def test_a_clip_that_lies_is_skipped_named_and_the_others_are_read(shard, tmp_path, changes):
    path = lie(shard, tmp_path / "a.tar", **changes)
    assert [clip.name for clip in readable(path)] == ["noise 0", "noise 2"]
    found = validate_shards(path)
    assert found.clips == 2 and len(found.problems) == 1 and str(path) in found.problems[0]


@pytest.mark.parametrize(
    "text", [b"", b"[", b"[" * 100_000, b"\xff\xfe", b"null", b"[]", b"{}", b'{"format": 1}', b"1" * 5000]
)
def test_json_that_is_none_is_skipped_and_named(shard, tmp_path, text):
    path = rewrite(tmp_path / "a.tar", lambda i, d: (i, text if i.name == "00000001.json" else d), shard)
    assert len(readable(path)) == 2 and "00000001" in scan_shard(path).problems[0]


def test_a_picture_of_another_size_than_the_json_says_is_not_decoded(tmp_path):
    """A bomb: a few kilobytes that would be gigabytes of pixels, with lengths and checksums that are right."""
    import struct

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 9_000, 9_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**7), 9)) + chunk(b"IEND", b"")
    clip = make_clip(1, frames=1)
    path = write_shards(tmp_path / "one", [clip])[0]

    def change(info, data):
        if info.name.endswith(".rgb.pngs"):
            data = bomb
        elif info.name.endswith(".json"):
            about = json.loads(data)
            about["rgb"] = {"bytes": [len(bomb)], "crc32": [zlib.crc32(bomb)]}
            about.pop("crc32")
            about["crc32"] = zlib.crc32(json.dumps(about, sort_keys=True, separators=(",", ":")).encode())
            data = json.dumps(about).encode()
        return info, data

    bad = rewrite(tmp_path / "bomb.tar", change, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ClipError, match="9000"):
        read_clip(bad, 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_a_member_that_claims_to_be_endless_takes_no_memory(shard, tmp_path):
    content = bytearray(shard.read_bytes())
    info = tarfile.TarInfo.frombuf(bytes(content[:512]), "utf-8", "strict")
    info.size = 2**60
    content[:512] = info.tobuf(tarfile.GNU_FORMAT)
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    assert len(scan_shard(path)) == 0 and "cut off" in scan_shard(path).problems[0]


def test_a_json_that_is_too_long_is_not_read(shard, tmp_path):
    long = b" " * (MAX_ABOUT + 1)
    path = rewrite(tmp_path / "a.tar", lambda i, d: (i, long if i.name == "00000001.json" else d), shard)
    assert "at most" in scan_shard(path).problems[0] and len(readable(path)) == 2


def test_arrays_that_lie_are_refused(shard, tmp_path):
    def change(info, data):
        if info.name == "00000001.safetensors":
            data = (2**62).to_bytes(8, "little") + data[8:]
        return info, data

    path = rewrite(tmp_path / "a.tar", change, shard)
    assert [clip.name for clip in readable(path)] == ["noise 0", "noise 2"]


def test_a_key_that_comes_twice_is_named(shard, tmp_path):
    def change(info, data):
        info.name = info.name.replace("00000002", "00000000")
        return info, data

    path = rewrite(tmp_path / "a.tar", change, shard)
    assert len(readable(path)) == 2 and "twice" in scan_shard(path).problems[0]


def test_pipes_and_folders_are_no_shards(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    (tmp_path / "b.tar").mkdir()
    (tmp_path / "c.tar").write_bytes(b"")
    (tmp_path / "d.tar").write_bytes(os.urandom(5000))
    shards = open_shards(tmp_path)
    assert [len(shard) for shard in shards] == [0] * 4 and all(shard.problems for shard in shards)
    with pytest.raises(ValueError, match="must hold"):
        open_shards(tmp_path / "nowhere")


def test_the_validator_names_every_bad_shard_clip_and_name(shard, tmp_path):
    data = shard.read_bytes()
    (tmp_path / "a.tar").write_bytes(data)
    damaged = bytearray(data)
    with tarfile.open(shard) as tar:
        (tmp_path / "b.tar").write_bytes(data[: tar.getmember("00000001.json").offset])
        damaged[tar.getmember("00000002.rgb.pngs").offset_data + 60] ^= 1
    (tmp_path / "c.tar").write_bytes(damaged)
    found = validate_shards(tmp_path)
    assert found.shards == 3 and found.clips == 3 + 1 + 2
    assert sum("cut off" in problem and "b.tar" in problem for problem in found.problems) == 1
    assert sum("checksum" in problem and "c.tar" in problem for problem in found.problems) == 1
    assert sum("is also that of" in problem for problem in found.problems) == 3


# ---------------------------------------------------------------- recording


def test_recorded_seeds_stay_in_their_split():
    from aether_env.sim import split_of
    from training.clip_sources import scene_seed

    assert split_of(scene_seed("validation", 0, 7)) == "validation"
    assert scene_seed("train", 0, 7) != scene_seed("train", 1, 7)
    for split, seed in (("train", 256), ("test", 1), ("train", -1)):
        with pytest.raises(ValueError):
            scene_seed(split, seed, 7)


def test_the_command_validates_a_folder_and_its_help_is_quick(shard, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "training.record"]
    helped = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--validate" in helped.stdout
    imported = {line.rpartition("|")[2].strip() for line in helped.stderr.splitlines()}
    assert "tyro" in imported and not imported & {"torch", "mujoco", "warp", "cv2", "scipy"}
    (tmp_path / "a.tar").write_bytes(shard.read_bytes()[:-12_000])
    done = subprocess.run(
        [*command[:1], *command[3:], "--validate", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "a.tar" in done.stdout and "cut off" in done.stdout


@pytest.mark.parametrize(
    ("words", "named"), [([], "--out"), (["--out", "x", "--clips", "1", "--device", "mars"], "device 'mars'")]
)
def test_what_cannot_be_recorded_is_one_line(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["record", *words])
    with pytest.raises(SystemExit) as end:
        tyro.cli(record_command)
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith("error: ") and named in told and told.count("\n") == 1
    assert not (tmp_path / "x").exists()
