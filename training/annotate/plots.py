"""One picture of plots for each annotated video: what a look must tell about it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:cyan")
_REFUSED = "0.6"
_DPI = 80


def video_figure(video: dict[str, Any]) -> bytes:
    """Return the plots of a video's JSON as PNG.

    Raises:
        ValueError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("the report needs Matplotlib: pip install 'aether-env[annotate]'.") from error

    figure = Figure(figsize=(14, 13))
    # By hand: finding a layout takes longer than all of the drawing.
    figure.subplots_adjust(left=0.12, right=0.98, top=0.97, bottom=0.05, hspace=0.35, wspace=0.15)
    axes = figure.subplots(4, 2)
    _reprojection(axes[0, 0], video)
    _from_above(axes[0, 1], video, (0, 2), "from above")
    _moving(axes[1, 0], video)
    _from_above(axes[1, 1], video, (2, 1), "from the side")
    _reasons(axes[2, 0], video)
    _focal(axes[2, 1], video)
    _consistency(axes[3, 0], video)
    _quality(axes[3, 1], video)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI)
    return data.getvalue()


def _slices(video: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every slice with its colour; refused ones are grey."""
    slices = [one for piece in video["pieces"] for one in piece["slices"]]
    for number, one in enumerate(slices):
        yield (_COLOURS[number % len(_COLOURS)] if one["kept"] else _REFUSED), one


def _numbers(values: Any) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _per_frame(axis: Any, video: dict[str, Any], name: str, **style: Any) -> bool:
    """Draw a figure that slices have for each frame."""
    drawn = False
    for colour, one in _slices(video):
        values = one["figures"].get(name)
        if isinstance(values, list) and len(values) == len(one["frames"]):
            axis.plot(one["frames"], _numbers(values), color=colour, **style)
            drawn = True
    _limits(axis, video)
    return drawn


def _limits(axis: Any, video: dict[str, Any]) -> None:
    numbers = [piece["frames"][end] for piece in video["pieces"] for end in (0, -1)]
    numbers += [int(number) for number in video["dropped"]]
    axis.set_xlim(min(numbers, default=0) - 0.5, max(numbers, default=0) + 0.5)


def _reprojection(axis: Any, video: dict[str, Any]) -> None:
    axis.set_title("reprojection error, pixels (thin: before refinement; grey: refused)")
    _per_frame(axis, video, "coarse", linewidth=0.7, alpha=0.7)
    _per_frame(axis, video, "reprojection", marker=".")
    axis.set_ylim(bottom=0)


def _from_above(axis: Any, video: dict[str, Any], shown: tuple[int, int], title: str) -> None:
    names = ("x, right", "y, down", "z, forward")
    axis.set_title(f"path {title} (dot: where it begins)")
    for colour, one in _slices(video):
        if one["positions"]:
            way = np.stack([_numbers(position) for position in one["positions"]])
            axis.plot(way[:, shown[0]], way[:, shown[1]], ".-", color=colour, markersize=3)
            axis.plot(*way[0, list(shown)], "o", color=colour)
            ahead = np.stack([_numbers(forward) for forward in one["forward"]])
            some = np.unique(np.linspace(0, len(way) - 1, 8).round().astype(int))
            axis.quiver(
                way[some, shown[0]], way[some, shown[1]], ahead[some, shown[0]], ahead[some, shown[1]],
                color=colour, angles="xy", width=0.003, scale=25,
            )  # fmt: skip
    axis.set_xlabel(names[shown[0]])
    axis.set_ylabel(names[shown[1]])
    axis.set_aspect("equal", adjustable="datalim")
    if shown[1] == 1:
        axis.invert_yaxis()


def _moving(axis: Any, video: dict[str, Any]) -> None:
    axis.set_title("share of the picture that moves")
    for piece in video["pieces"]:
        if piece["moving_share"] is not None:
            axis.fill_between(piece["frames"], _numbers(piece["moving_share"]), step="mid", color="tab:red", alpha=0.6)
    axis.set_ylim(0, 1)
    _limits(axis, video)


def _reasons(axis: Any, video: dict[str, Any]) -> None:
    axis.set_title("what became of the frames")
    places: dict[str, list[int]] = {}
    dropped = dict(video["dropped"])
    for piece in video["pieces"]:
        dropped |= piece["dropped"]
        for one in piece["slices"]:
            places.setdefault("kept" if one["kept"] else str(one["reason"]), []).extend(one["frames"])
    for number, reason in dropped.items():
        places.setdefault(reason, []).append(int(number))
    names = sorted(places, key=lambda name: (name != "kept", -len(places[name])))
    for row, name in enumerate(names):
        axis.plot(places[name], [row] * len(places[name]), "|", color="tab:green" if name == "kept" else "tab:red")
    axis.set_yticks(range(len(names)), [f"{name} ({len(places[name])})" for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    _limits(axis, video)


def _focal(axis: Any, video: dict[str, Any]) -> None:
    axis.set_title("focal length of each slice, pixels (bar: two sigma; dashed: median)")
    found = []
    for number, (colour, one) in enumerate(_slices(video)):
        focal, std = one["figures"].get("focal"), one["figures"].get("focal_std")
        if focal is not None:
            axis.errorbar([number], [focal], yerr=[2 * (std or 0)], fmt="o", color=colour, capsize=4)
            found += [focal] if one["kept"] else []
    if found:
        axis.axhline(np.median(found), linestyle="--", color="0.4")
    _whole_ticks(axis)


def _consistency(axis: Any, video: dict[str, Any]) -> None:
    axis.set_title("share of the depth that agrees with other frames")
    if not _per_frame(axis, video, "consistency", marker="."):
        for colour, one in _slices(video):  # one number a slice
            if isinstance(value := one["figures"].get("consistency"), int | float):
                axis.plot([one["frames"][0], one["frames"][-1]], [value, value], color=colour)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("frame")


def _quality(axis: Any, video: dict[str, Any]) -> None:
    axis.set_title("quality of each slice")
    for number, (colour, one) in enumerate(_slices(video)):
        axis.bar([number], [one["quality"] or 0], color=colour)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("slice")
    _whole_ticks(axis)


def _whole_ticks(axis: Any) -> None:
    axis.xaxis.get_major_locator().set_params(integer=True)
