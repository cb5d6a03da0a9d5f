"""Numbers in settings: each has a range, and is refused by name outside of it."""

from __future__ import annotations

import math
from typing import Any


def in_range(name: str, value: float, low: float, high: float = math.inf, *, ends: str = "[]") -> None:
    """Refuse a number outside a range; NaN and infinity are outside of every one.

    Args:
        name: Of the setting, for the message.
        value: The number.
        low: Its lower bound, or -inf.
        high: Its upper bound, or inf.
        ends: "[]": the bounds are allowed. "(]", "[)" and "()": the lower, the upper, both are not.

    Raises:
        ValueError: It lies outside.
    """
    above = value > low if ends[0] == "(" else value >= low
    below = value < high if ends[1] == ")" else value <= high
    if above and below and -math.inf < value < math.inf:
        return
    bound = f"{'above' if ends[0] == '(' else 'at least'} {low} and finite"
    if high < math.inf:
        bound = f"in {ends[0]}{low}, {high}{ends[1]}"
    elif low == -math.inf:
        bound = "finite"
    raise ValueError(f"{name} must be {bound}, got {value}.")


def fields_in_range(settings: Any, *names: str, low: float, high: float = math.inf, ends: str = "[]") -> None:
    """Refuse fields outside a range, see `in_range`; of a tuple every entry counts.

    Raises:
        ValueError: One lies outside.
    """
    for name in names:
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            in_range(name, number, low, high, ends=ends)


def arguments_in_range(name: str, arguments: dict[str, Any]) -> None:
    """Refuse numbers among the arguments of a network that no network can have.

    Args:
        name: Of the setting, for the message.
        arguments: Of any kind. Whole numbers are sizes, at least 1; only numbers of blocks (`*_blocks`) may be 0.

    Raises:
        ValueError: A number is negative, NaN or infinite, or a size is 0.
    """
    for key, value in arguments.items():
        if isinstance(value, float):
            in_range(f"{name}.{key}", value, 0)
        elif isinstance(value, int) and not isinstance(value, bool):
            in_range(f"{name}.{key}", value, 0 if key.endswith("_blocks") else 1)
