"""Snapshots as bytes: what goes in comes out to the last bit, and nothing else is let in."""

import hashlib
import json
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict, namedtuple
from enum import IntEnum

import numpy as np
import pytest
from gymnasium.utils import seeding
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from aether_env.envs import snapshots
from aether_env.envs.snapshots import flatten, generator_state, pack, restored_generator, unflatten, unpack

HEAD = 41
DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


def small():
    arrays = {
        "latents": np.arange(6, dtype=np.float16).reshape(2, 3),
        "filled": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        "single": np.array(np.nan),
    }
    return arrays, {"world": {"kind": "dream", "sigmas": [1.0, 0.5]}, "seed": 2**127 + 1, "name": "Möwe"}


def with_right_sum(payload):
    """Put payload into a snapshot as whoever wants to do harm would."""
    return b"AETHSNAP\x01" + hashlib.sha256(payload).digest() + payload


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def same(a, b):
    """Whether two nests are the same: types, order of keys, every bit of every number."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return repr(a) == repr(b)


# The bytes.


def test_what_is_packed_is_unpacked_and_the_same_content_gives_the_same_bytes():
    arrays, about = small()
    data = pack(arrays, about)
    got, got_about = unpack(data)
    assert same(dict(sorted(got.items())), dict(sorted(arrays.items()))) and same(got_about, about)
    assert data == pack(dict(reversed(arrays.items())), about)
    assert same(unpack(bytearray(data))[1], about) and same(unpack(memoryview(data))[1], about)


def test_a_snapshot_is_what_the_module_says_and_any_safetensors_reader_reads_it(tmp_path):
    from safetensors import safe_open

    arrays, about = small()
    data = pack(arrays, about)
    assert data[:9] == b"AETHSNAP\x01" and data[9:HEAD] == hashlib.sha256(data[HEAD:]).digest()
    (tmp_path / "payload").write_bytes(data[HEAD:])
    with safe_open(tmp_path / "payload", framework="np") as file:
        assert json.loads(file.metadata()["about"]) == about
        np.testing.assert_array_equal(file.get_tensor("latents"), arrays["latents"])


def test_arrays_are_written_as_they_look_not_as_they_lie_in_memory():
    whole = np.arange(24.0).reshape(2, 3, 4)
    views = {"turned": whole.T, "part": whole[:, ::2, 1:], "backwards": whole[::-1], "spread": np.broadcast_to(1.0, 5)}
    got, _ = unpack(pack(views, {}))
    for name, view in views.items():
        np.testing.assert_array_equal(got[name], view)
        got[name][...] = 0  # what is unpacked belongs to the caller
    np.testing.assert_array_equal(whole, np.arange(24.0).reshape(2, 3, 4))


def test_every_single_changed_bit_is_noticed():
    data = pack(*small())
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="must begin|version|sha256"):
            unpack(damaged)


def test_changed_bytes_at_random_places_of_a_large_snapshot_are_noticed():
    rng = np.random.default_rng(0)
    data = bytearray(pack({"memory": rng.standard_normal((100, 1000)).astype(np.float32)}, {}))
    for place, change in zip(rng.integers(len(data), size=300), rng.integers(1, 256, size=300), strict=True):
        data[place] ^= change
        with pytest.raises(ValueError, match="snapshot"):
            unpack(data)
        data[place] ^= change
    unpack(data)


def test_every_truncation_and_anything_appended_is_noticed():
    data = pack(*small())
    for length in range(len(data)):
        with pytest.raises(ValueError, match="must begin" if length < 8 else "truncated"):
            unpack(data[:length])
    for more in (b"\0", data):
        with pytest.raises(ValueError, match="sha256"):
            unpack(data + more)


class Bomb:
    went_off = False

    def __reduce__(self):
        return setattr, (Bomb, "went_off", True)


@pytest.mark.parametrize(
    "data, named",
    [
        (b"", "must begin"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "must begin"),
        (pickle.dumps(Bomb()), "must begin"),
        (with_right_sum(pickle.dumps(Bomb())), "not one that snapshot"),
        (b"AETHSNAP\x02" + pack({}, {})[9:], "version 2"),
        (pack({}, {}).decode("latin1"), "must be bytes, .* got str"),
        (None, "must be bytes, .* got NoneType"),
        (np.frombuffer(pack({}, {}), np.uint8), "must be bytes, .* got ndarray"),
        (with_right_sum(safetensors({})), "__metadata__"),
        (with_right_sum(safetensors({"__metadata__": {"other": "{}"}})), "about"),
        (with_right_sum(safetensors({"__metadata__": {"about": "{"}})), "not one that"),
        (with_right_sum(safetensors({"__metadata__": {"about": "[1]"}})), "no object"),
        (with_right_sum(safetensors({"__metadata__": {"about": '{"unit": NaN}'}})), "NaN"),
        (with_right_sum(safetensors({"__metadata__": {"about": '{"unit": -Infinity}'}})), "Infinity"),
        (with_right_sum(safetensors({"__metadata__": {"about": '{"unit": 1e999}'}})), "1e999"),
        (with_right_sum(safetensors({"__metadata__": {"about": '{"n": ' + "9" * 5000 + "}"}})), "not one that"),
        (with_right_sum(safetensors({"__metadata__": {"about": "[" * 10**5}})), "not one that"),
        (with_right_sum(safetensors({"__metadata__": {"about": " " * (1 << 20) + "{}"}})), "bytes of JSON"),
        (with_right_sum(safetensors(b"[" * 10**5)), "not one that"),
        (with_right_sum(struct.pack("<Q", 2**63) + b"{}"), "not one that"),
        (
            with_right_sum(safetensors({"a": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 8]}}, bytes(8))),
            "not",
        ),
        (
            with_right_sum(
                safetensors(
                    {
                        "__metadata__": {"about": "{}"},
                        "a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]},
                    },
                    bytes(2),
                )
            ),
            "BF16",
        ),
        (
            with_right_sum(
                safetensors(
                    {
                        "__metadata__": {"about": "{}"},
                        "a": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]},
                    },
                    b"\x02",
                )
            ),
            "neither true nor false",
        ),
    ],
)
def test_foreign_bytes_are_refused_with_a_word_about_what_they_are(data, named):
    with pytest.raises(ValueError, match=named):
        unpack(data)
    assert not Bomb.went_off


def test_a_payload_damaged_by_one_who_can_count_is_read_or_refused_but_never_breaks():
    payload, rng = pack(*small())[HEAD:], np.random.default_rng(1)
    refused = 0
    for _ in range(500):
        damaged = bytearray(payload)
        for place in rng.integers(len(payload), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        try:
            unpack(with_right_sum(bytes(damaged)))
        except ValueError:
            refused += 1
    assert refused > 100


def test_what_is_too_large_is_refused_before_it_is_read(monkeypatch):
    data = pack({"a": np.zeros(1000)}, {})
    monkeypatch.setattr(snapshots, "MAX_BYTES", len(data))
    unpack(data)
    monkeypatch.setattr(snapshots, "MAX_BYTES", len(data) - 1)
    for large in (data, memoryview(np.zeros(125 + len(data) // 8)), b"no snapshot" * 1000):
        with pytest.raises(ValueError, match="at most"):
            unpack(large)
    with pytest.raises(ValueError, match="at most"):
        pack({"a": np.zeros(1000)}, {})


@pytest.mark.parametrize(
    "arrays, about, named",
    [
        ({"a": [1.0]}, {}, "'a'"),
        ({"a": np.array([None])}, {}, "'a' .* object"),
        ({"a": np.zeros(3, np.complex64)}, {}, "complex64"),
        ({"a": np.zeros(3, ">f4")}, {}, "'a' .* >f4"),
        ({"__metadata__": np.zeros(3)}, {}, "__metadata__"),
        ({}, {"unit": float("nan")}, "about"),
        ({}, {"unit": np.float32(1)}, "about"),
        ({}, {"text": "x" * (1 << 20)}, "about takes"),
    ],
)
def test_what_can_not_be_read_back_is_not_written(arrays, about, named):
    with pytest.raises(ValueError, match=named):
        pack(arrays, about)


def test_snapshots_need_no_torch():
    code = "import sys, aether_env.envs.snapshots; sys.exit('torch' in sys.modules or 'mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# A task's state.


def leaves():
    arrays = st.sampled_from(DTYPES).flatmap(
        lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, min_side=0))
    )
    scalars = st.sampled_from(DTYPES).flatmap(lambda dtype: npst.arrays(dtype, ()).map(lambda array: array[()]))
    plain = st.none() | st.booleans() | st.integers(-(2**4096) + 1, 2**4096 - 1) | st.floats() | st.text()
    return plain | arrays | scalars


def nests():
    return st.recursive(
        leaves(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.text(max_size=3) | st.sampled_from(["array", "tuple", "dict"]), inner, max_size=3)
        ),
        max_leaves=8,
    )


@settings(max_examples=200, deadline=None)
@given(nests())
def test_a_tasks_state_survives_with_its_types(value):
    arrays, plain = flatten(value, "task")
    arrays, about = unpack(pack(arrays, {"task": plain}))
    assert same(unflatten(arrays, about["task"]), value)


def test_the_hard_ones_survive():
    value = {
        "z": (1, 1.0, True, -0.0, float("nan"), float("inf"), -float("inf"), 5e-324),
        "a": [np.float32(1), np.float64(1), np.bool_(True), np.uint8(255), np.array(3), np.zeros((2, 0))],
        "tuple": {"array": "task.0", "float": "nan", "": ()},
        "bits": np.array([0x7FC00001, 0x7F800001], np.uint32).view(np.float32),
    }
    arrays, plain = flatten(value, "task")
    got = unflatten(arrays, json.loads(json.dumps(plain)))
    assert same(got, value) and list(got) == ["z", "a", "tuple", "bits"]


def test_arrays_are_shared_with_nobody():
    value = [np.zeros(3)]
    arrays, plain = flatten(value, "task")
    value[0][0] = 1
    got = unflatten(arrays, plain)
    got[0][1] = 2
    assert unflatten(arrays, plain)[0].tolist() == [0, 0, 0]


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


def test_nests_may_be_32_deep_and_not_33():
    arrays, plain = flatten(deep(32), "task")
    assert unflatten(arrays, plain) == deep(32)
    with pytest.raises(ValueError, match="at most 32 deep"):
        flatten(deep(33), "task")
    with pytest.raises(ValueError, match="no value"):
        unflatten({}, [plain])
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="at most 32 deep"):
        flatten(endless, "task")


Point = namedtuple("Point", "x y")
Colour = IntEnum("Colour", "RED")


@pytest.mark.parametrize(
    "bad",
    [
        object(),
        {1, 2},
        b"bytes",
        1j,
        2**4096,
        {3: 4},
        "\ud83d\ude00",
        {"\ud800": 1},
        Point(1, 2),
        Colour.RED,
        OrderedDict(a=1),
        np.array(["text"]),
        np.array([None]),
        np.zeros(2, np.complex128),
        np.zeros(2, ">f8"),
        np.zeros(2, [("x", "f8")]),
        np.ma.zeros(2),
        np.datetime64("2024-01-01"),
        np.str_("text"),
        np.longdouble(1),
    ],
)
def test_other_objects_are_refused_by_their_place(bad):
    with pytest.raises(ValueError, match=r"task\['goal'\]\[1\]: a task's state must be made of"):
        flatten({"goal": (0, bad)}, "task")


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"array": "task.1"},
        {"array": 0},
        {"array": ["task.0"]},
        {"set": []},
        {"tuple": {}},
        {"dict": []},
        {"float": "1.5"},
        {"float": ["nan"]},
        {"array": "task.0", "dict": {}},
        [{"array": "task.0"}, {"array": "task.0"}],
        {"scalar": "task.0"},
    ],
)
def test_what_flatten_never_returns_is_refused(plain):
    with pytest.raises(ValueError, match="no value"):
        unflatten({"task.0": np.zeros(2)}, plain)


def test_arrays_that_belong_to_nothing_are_named():
    with pytest.raises(ValueError, match=r"'task\.1'"):
        unflatten({"task.0": np.zeros(2), "task.1": np.zeros(2)}, {"array": "task.0"})


# The generator.


@pytest.mark.parametrize("draws", [0, 1, 2])
def test_a_restored_generator_goes_on_with_the_same_numbers(draws):
    generator, _ = seeding.np_random(3)
    generator.integers(0, 10, size=draws, dtype=np.uint32)  # an odd number leaves half a word over
    generator.spawn(1)
    state = generator_state(generator)
    twin = restored_generator(json.loads(json.dumps(state)))
    assert generator_state(twin) == generator_state(generator) == state
    for take in (
        lambda g: g.integers(0, 10, size=3, dtype=np.uint32),
        lambda g: g.standard_normal(100),
        lambda g: g.permutation(20),
        lambda g: g.spawn(2)[1].random(5),
    ):
        np.testing.assert_array_equal(take(twin), take(generator))


@pytest.mark.parametrize("seed", [None, 2**200 + 7, [1, 2, 3]])
def test_generators_of_any_seed_and_their_children_are_restored(seed):
    for generator in (np.random.default_rng(seed), np.random.default_rng(seed).spawn(2)[1]):
        twin = restored_generator(json.loads(json.dumps(generator_state(generator))))
        assert twin.random() == generator.random()
        assert twin.spawn(1)[0].random() == generator.spawn(1)[0].random()


@pytest.mark.parametrize("other", [np.random.Generator(np.random.MT19937(0)), np.random.RandomState(0), None, 3])
def test_generators_of_another_kind_are_refused(other):
    with pytest.raises(ValueError, match="PCG64"):
        generator_state(other)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "MT19937"},
        {"state": 2**128},
        {"state": -1},
        {"state": 1.0},
        {"inc": 2},
        {"inc": "1"},
        {"has_uint32": 2},
        {"has_uint32": True},
        {"uinteger": 2**32},
        {"entropy": []},
        {"entropy": 3},
        {"entropy": [-1]},
        {"spawn_key": [2**32]},
        {"n_children_spawned": None},
        {"more": 1},
    ],
)
def test_a_damaged_generator_is_refused(change):
    with pytest.raises(ValueError, match="generator"):
        restored_generator(generator_state(np.random.default_rng(0)) | change)


@pytest.mark.parametrize("state", [None, [], {}, {"kind": "PCG64"}])
def test_what_is_no_generator_is_refused(state):
    with pytest.raises(ValueError, match="generator"):
        restored_generator(state)
