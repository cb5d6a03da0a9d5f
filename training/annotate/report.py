"""What was kept of the videos of a run and why: a JSON for programs, one page with plots for people.

The page is one file: its pictures are inside, it asks for nothing else, and every name in it is escaped.
"""

from __future__ import annotations

import html
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.annotate.settings import AnnotateSettings

JSON, PAGE = "report.json", "report.html"
MOST_DRAWN = 200
"""Videos with plots on the page, the worst ones; all are in its table."""
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1180px; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: .15em .8em; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f4f4f4; }
img { max-width: 100%; } .bad { color: #b00; } h2 { border-top: 1px solid #ccc; padding-top: .8em; }
"""


def version() -> str:
    """Return the version of this package."""
    try:
        return importlib.metadata.version("aether-env")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def write_report(out: Path, paths: Sequence[Path], settings: AnnotateSettings) -> dict[str, Any]:
    """Write report.json and report.html of the videos' JSONs, and return the totals.

    Args:
        out: Folder of the run.
        paths: JSONs of its videos; one that is not there is a video that is not done.
        settings: Of the run.
    """
    videos, totals = [], Counter(videos=0, failed=0, unfinished=0, clips=0, frames=0, kept=0, dropped=0)
    reasons: Counter[str] = Counter()
    rows, drawn = [], []
    for path in paths:
        if not path.exists():
            totals["unfinished"] += 1
            continue
        video = json.loads(path.read_text())
        told = count(video)
        totals.update({"videos": 1, "failed": int(video["failed"] is not None), "clips": video.get("clips", 0)})
        totals.update({name: told[name] for name in ("frames", "kept", "dropped")})
        reasons.update(told["reasons"])
        rows.append((video["name"], told, video["failed"]))
        drawn.append((-1.0 if video["failed"] else told["quality"] or 0.0, path))
        videos.append(_without_pictures(video) | {"told": told})
    summary = {
        "version": version(),
        "settings": settings.told(),
        "totals": dict(totals),
        "reasons": dict(reasons.most_common()),
        "videos": videos,
    }
    _replace(out / JSON, [json.dumps(summary, allow_nan=False), "\n"])
    chosen = [path for _, path in sorted(drawn)[:MOST_DRAWN]]
    sections = (_section(json.loads(path.read_text())) for path in chosen)
    _replace(out / PAGE, _page(summary, rows, sections))
    return dict(totals)


def count(video: dict[str, Any]) -> dict[str, Any]:
    """Return frames, kept and dropped ones with reasons, and the mean quality of what was kept, of a video's JSON."""
    kept, quality = 0, []
    reason_of = dict(video.get("dropped", {}))
    numbers = set(reason_of)
    for piece in video.get("pieces", ()):
        numbers |= {str(number) for number in piece["frames"]}
        reason_of |= piece["dropped"]
        for one in piece["slices"]:
            if one["kept"]:
                kept += len(one["frames"])
                quality += [one["quality"] or 0.0] * len(one["frames"])
            else:
                reason_of |= {str(number): one["reason"] or "refused" for number in one["frames"]}
    return {
        "frames": len(numbers),
        "kept": kept,
        "dropped": len(numbers) - kept,
        "quality": float(np.mean(quality)) if quality else None,
        "reasons": dict(Counter(reason_of.values()).most_common()),
    }


def _without_pictures(video: dict[str, Any]) -> dict[str, Any]:
    pieces = [{k: v for k, v in piece.items() if k != "pictures"} for piece in video.get("pieces", ())]
    return {k: v for k, v in video.items() if k != "figure"} | ({"pieces": pieces} if "pieces" in video else {})


def _page(summary: dict[str, Any], rows: list[Any], sections: Iterable[str]) -> Iterable[str]:
    totals = summary["totals"]
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Annotation</title><style>{_STYLE}</style>\n'
    yield f"<h1>Annotation</h1><p>aether-env {html.escape(summary['version'])}: {totals['clips']} clips of "
    yield f"{totals['kept']} frames from {totals['videos']} videos; {totals['dropped']} of {totals['frames']} frames "
    yield f"were dropped, {totals['failed']} videos failed, {totals['unfinished']} are not done.</p>\n"
    yield _table(("reason", "frames"), summary["reasons"].items())
    header = ("video", "frames", "kept", "quality", "most dropped for")
    yield _table(header, [_row(*row) for row in rows])
    if len(rows) > MOST_DRAWN:
        yield f"<p>Drawn are the {MOST_DRAWN} worst videos.</p>"
    yield from sections
    yield "<h2>Settings</h2><pre>" + html.escape(json.dumps(summary["settings"], indent=1)) + "</pre></html>\n"


def _row(name: str, told: dict[str, Any], failed: str | None) -> tuple[str, ...]:
    worst = "; ".join(f"{reason} {number}" for reason, number in list(told["reasons"].items())[:3])
    quality = "" if told["quality"] is None else f"{told['quality']:.2f}"
    return name, str(told["frames"]), str(told["kept"]), quality, f"failed: {failed}" if failed else worst


def _section(video: dict[str, Any]) -> str:
    parts = [f"<h2>{html.escape(video['name'])}</h2><p>{html.escape(video['input'])}</p>"]
    if video["failed"]:
        parts.append(f'<p class="bad">{html.escape(video["failed"])}</p>')
    if "figure" in video:
        parts.append(_image("png", video["figure"], "plots"))
    for piece in video.get("pieces", ()):
        parts += [_image("jpeg", picture["jpeg"], f"frame {picture['frame']}") for picture in piece["pictures"]]
    slices = [one for piece in video.get("pieces", ()) for one in piece["slices"]]
    rows = []
    for one in slices:
        numbers = {k: v for k, v in one["figures"].items() if isinstance(v, int | float) and not isinstance(v, bool)}
        state = one["clip"] if one["kept"] else f"refused: {one['reason']}"
        quality = "" if one["quality"] is None else f"{one['quality']:.2f}"
        figures = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        rows.append((f"{one['frames'][0]}-{one['frames'][-1]}", str(len(one["frames"])), quality, state, figures))
    if rows:
        parts.append(_table(("frames", "how many", "quality", "clip", "figures"), rows))
    return "\n".join(parts) + "\n"


def _image(kind: str, data: str, title: str = "") -> str:
    title = html.escape(title)
    return f'<img src="data:image/{kind};base64,{html.escape(data)}" alt="{title}" title="{title}">'


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</table>\n"])


def _replace(path: Path, parts: Iterable[str]) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.writelines(parts)
    unfinished.replace(path)
