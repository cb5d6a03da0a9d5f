"""Snapshots as bytes that can be trusted: what is written is read back exactly, and anything else is refused.

```
AETHSNAP | version, 1 byte | sha256 of the rest, 32 bytes | safetensors: arrays, and a JSON text in its metadata
```
`pack` and `unpack` know this form; `flatten` and `unflatten` bring a task's state into it, `generator_state` and
`restored_generator` a random generator. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

MAGIC = b"AETHSNAP"
"""First bytes of a snapshot."""
VERSION = 1
"""Of the form; goes up when older readers can not read it any more."""
MAX_BYTES = 64 << 20
"""Largest snapshot; one of an env with the checkpoint "mini" takes less than 1 MiB."""
MAX_JSON_BYTES = 1 << 20
"""Largest JSON text in it."""
MAX_DEPTH = 32
"""How deep dicts, lists and tuples of a task's state may be nested."""

_HEAD = len(MAGIC) + 1 + hashlib.sha256().digest_size
_MAX_INT_BITS = 4096
"""Python reads no JSON numbers that are much longer."""
_TYPES = frozenset(np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)) | frozenset(
    map(np.dtype, ("bool", "f2", "f4", "f8"))
)
"""Of arrays, all in this machine's byte order."""
_ALLOWED = (
    "None, bool, int (below 2**4096), float, str, numpy arrays and scalars (bool, int, uint, float), and dicts with "
    f"keys of str, lists and tuples of these, nested at most {MAX_DEPTH} deep"
)
_SPECIAL = ("nan", "inf", "-inf")


def pack(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """Return arrays and what belongs to them as bytes; the same content gives the same bytes.

    Args:
        arrays: By name, any shape; bool, int, uint or float.
        about: What JSON can hold without loss: keys of str, lists rather than tuples, finite numbers.

    Raises:
        ValueError: An array or `about` can not be written, or the whole is too large.
    """
    for name, array in arrays.items():
        if name == "__metadata__":
            raise ValueError("an array must not be called '__metadata__': safetensors keeps the name for itself.")
        if not isinstance(array, np.ndarray) or array.dtype not in _TYPES:
            raise ValueError(f"array {name!r} must be a numpy array of bool, int, uint or float, got {_kind(array)}.")
    try:
        text = json.dumps(dict(about), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"about must be what JSON can hold ({error}); flatten() prepares other values.") from error
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"about takes {len(text)} bytes, at most {MAX_JSON_BYTES} fit; keep many numbers in arrays.")
    # safetensors reads the memory as it lies, so a transposed array has to be laid out anew.
    payload = save({name: np.asarray(array, order="C") for name, array in arrays.items()}, {"about": text})
    snapshot = MAGIC + bytes([VERSION]) + hashlib.sha256(payload).digest() + payload
    if len(snapshot) > MAX_BYTES:
        raise ValueError(f"the snapshot would take {len(snapshot)} bytes, at most {MAX_BYTES} are read; keep less.")
    return snapshot


def unpack(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Undo `pack`.

    Args:
        data: Of `pack`; bytearray and memoryview will do.

    Returns:
        The arrays and what belongs to them.

    Raises:
        ValueError: These are not the bytes of a snapshot, or not all of them, or they were changed on their way.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError(f"snapshot must be bytes, as snapshot() returns them, got {type(data).__name__}.")
    size = memoryview(data).nbytes
    if size > MAX_BYTES:
        raise ValueError(f"snapshot must have at most {MAX_BYTES} bytes, got {size}: it is none of ours.")
    data = bytes(data)
    if not data.startswith(MAGIC):
        raise ValueError(
            f"snapshot must begin with {MAGIC!r}, got {data[: len(MAGIC)]!r}; pass all that snapshot() returned."
        )
    if len(data) <= _HEAD:
        raise ValueError(f"snapshot is truncated: only {size} bytes; copy it again or take a new one.")
    if data[len(MAGIC)] != VERSION:
        raise ValueError(
            f"snapshot has the version {data[len(MAGIC)]}, this aether_env reads {VERSION}; use the one that wrote it."
        )
    digest, payload = data[len(MAGIC) + 1 : _HEAD], data[_HEAD:]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError("snapshot is truncated or damaged: its sha256 differs; copy it again or take a new one.")
    try:
        arrays = load(payload)
        header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")])
        text = header["__metadata__"]["about"]
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f"{len(text)} bytes of JSON, at most {MAX_JSON_BYTES} are read")
        about = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if not isinstance(about, dict):
            raise ValueError(f"the JSON is no object but {text:.40}")
        for name, array in arrays.items():
            if array.dtype == bool and (array.view(np.uint8) > 1).any():
                raise ValueError(f"{name!r} holds what is neither true nor false")
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"snapshot is not one that snapshot() wrote ({error}); take a new one.") from error
    return {name: array.copy() for name, array in arrays.items()}, about


def flatten(value: Any, name: str) -> tuple[dict[str, np.ndarray], Any]:
    """Return a task's state as arrays and JSON, for `pack`; types, shapes and every bit are kept.

    Args:
        value: None, bool, int, float (NaN and infinity too), str, numpy arrays and scalars, and dicts with keys of
            str, lists and tuples of these. No classes derived from them.
        name: What arrays are called after ("task" gives "task.0") and errors speak of ("task['goal']").

    Returns:
        The arrays, copied, and all else.

    Raises:
        ValueError: Something else is in it; names the place.
    """
    arrays: dict[str, np.ndarray] = {}
    return arrays, _plain(value, name, 0, name, arrays)


def unflatten(arrays: Mapping[str, np.ndarray], plain: Any) -> Any:
    """Undo `flatten`.

    Args:
        arrays: The arrays of `flatten` and no others; they are copied.
        plain: The rest of it.

    Raises:
        ValueError: They are not what `flatten` returns, or do not belong together.
    """
    unused = dict(arrays)
    value = _value(plain, 0, unused)
    if unused:
        raise ValueError(f"the snapshot has arrays {sorted(unused)[:3]} that belong to nothing; take a new one.")
    return value


def generator_state(np_random: np.random.Generator) -> dict[str, Any]:
    """Return what JSON can hold and `restored_generator` needs.

    Args:
        np_random: As `gymnasium.utils.seeding.np_random` and `numpy.random.default_rng` make it; it is not touched.

    Raises:
        ValueError: It is of another kind.
    """
    bits = getattr(np_random, "bit_generator", None)
    if type(bits) is not np.random.PCG64:
        raise ValueError(f"np_random must be a Generator of PCG64, got {bits or np_random!r}; use default_rng(seed).")
    seed: Any = bits.seed_seq
    if type(seed) is not np.random.SeedSequence or seed.pool_size != 4:
        raise ValueError(f"np_random must be seeded as default_rng(seed) does it, got the seed {seed!r}.")
    now = bits.state
    return {
        "kind": "PCG64",
        "state": int(now["state"]["state"]),
        "inc": int(now["state"]["inc"]),
        "has_uint32": int(now["has_uint32"]),
        "uinteger": int(now["uinteger"]),
        # Only what `spawn` makes follows from these.
        "entropy": [int(word) for word in np.atleast_1d(np.asarray(seed.entropy, dtype=object))],
        "spawn_key": [int(word) for word in seed.spawn_key],
        "n_children_spawned": int(seed.n_children_spawned),
    }


def restored_generator(state: Mapping[str, Any]) -> np.random.Generator:
    """Undo `generator_state`: the new generator draws and spawns what the old one would have.

    Raises:
        ValueError: It is not what `generator_state` returns.
    """
    words = {"state": 128, "inc": 128, "has_uint32": 1, "uinteger": 32, "n_children_spawned": 32}
    lists = {"entropy": _MAX_INT_BITS, "spawn_key": 32}
    if not isinstance(state, Mapping) or set(state) != {"kind", *words, *lists} or state["kind"] != "PCG64":
        raise ValueError(f"generator must be as generator_state() gives it, got {state!r:.80}; take a new snapshot.")
    for name, bits in words.items():
        if not _is_word(state[name], bits):
            raise ValueError(f"generator's {name} must be a whole number of {bits} bits, got {state[name]!r:.80}.")
    for name, bits in lists.items():
        if not isinstance(state[name], list) or not all(_is_word(word, bits) for word in state[name]):
            raise ValueError(f"generator's {name} must be a list of whole numbers, got {state[name]!r:.80}.")
    if state["inc"] % 2 == 0 or not state["entropy"]:
        raise ValueError("generator must have an odd inc and some entropy: no PCG64 is like this; take a new snapshot.")
    seed = np.random.SeedSequence(
        state["entropy"], spawn_key=state["spawn_key"], n_children_spawned=state["n_children_spawned"]
    )
    generator = np.random.Generator(np.random.PCG64(seed))
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": state["state"], "inc": state["inc"]},
        "has_uint32": state["has_uint32"],
        "uinteger": state["uinteger"],
    }
    return generator


def _plain(value: Any, place: str, depth: int, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Return what JSON holds as it is (None, bool, int, finite float, str, list), else {what it is: its content}."""

    def inside(value: Any, key: int | str) -> Any:
        return _plain(value, f"{place}[{key!r}]", depth + 1, name, arrays)

    kind = type(value)
    if depth <= MAX_DEPTH:
        if value is None or kind is bool or (kind is int and value.bit_length() <= _MAX_INT_BITS):
            return value
        if kind is str and _is_text(value):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if (kind is np.ndarray or isinstance(value, np.generic)) and value.dtype in _TYPES:
            key = f"{name}.{len(arrays)}"
            arrays[key] = np.array(value, order="C")
            return {"array" if kind is np.ndarray else "scalar": key}
        if kind in (list, tuple):
            items = [inside(item, index) for index, item in enumerate(value)]
            return items if kind is list else {"tuple": items}
        if kind is dict and all(type(key) is str and _is_text(key) for key in value):
            return {"dict": {key: inside(item, key) for key, item in value.items()}}
    raise ValueError(f"{place}: a task's state must be made of {_ALLOWED}, to be in a snapshot; got {_kind(value)}.")


def _value(plain: Any, depth: int, unused: dict[str, np.ndarray]) -> Any:
    """Undo `_plain`, and take what it needs out of `unused`."""
    if depth <= MAX_DEPTH:
        if plain is None or type(plain) in (bool, int, float, str):
            return plain
        tag, content = next(iter(plain.items())) if type(plain) is dict and len(plain) == 1 else ("list", plain)
        if tag == "float" and content in _SPECIAL:
            return float(content)
        if tag in ("array", "scalar") and isinstance(content, str) and content in unused:
            array = np.array(unused.pop(content))
            if array.dtype in _TYPES and (tag == "array" or not array.ndim):
                return array if tag == "array" else array[()]
        if tag in ("list", "tuple") and type(content) is list:
            items = [_value(item, depth + 1, unused) for item in content]
            return items if tag == "list" else tuple(items)
        if tag == "dict" and type(content) is dict:
            return {key: _value(item, depth + 1, unused) for key, item in content.items()}
    raise ValueError(f"the snapshot of a task's state has {plain!r:.80}, which is no value of it; take a new one.")


def _is_text(text: str) -> bool:
    """Return whether JSON gives it back: halves of a surrogate pair would come back as one character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_word(value: Any, bits: int) -> bool:
    return type(value) is int and 0 <= value and value.bit_length() <= bits


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the JSON has the number {text:.40}")
    return value


def _kind(value: Any) -> str:
    """Return what a value is, for errors."""
    if isinstance(value, np.ndarray | np.generic):
        return f"{type(value).__name__} of {value.dtype}"
    if type(value) is dict:
        return f"a dict with the keys {list(value)!r:.80}"
    return f"{value!r:.80} ({type(value).__name__})"
