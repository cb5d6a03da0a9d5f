"""What it means that two envs gave the same."""

import numpy as np


def assert_same(a, b, where=""):
    """The same types, shapes and bits."""
    assert type(a) is type(b), f"{where}: {type(a)} is not {type(b)}"
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, tuple | list):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{index}]")
    elif isinstance(a, np.ndarray) and a.dtype == object:
        assert b.dtype == object, where
        assert_same(a.tolist(), b.tolist(), where)
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b, strict=True, err_msg=where)
    else:
        assert a == b, where
