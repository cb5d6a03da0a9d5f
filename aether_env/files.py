"""Writing so that nothing is ever half-written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a new folder to write into, which becomes `folder` at the end; whatever fails, one that was there stays.

    Its files get the rights of any new file: safetensors lets nobody but the owner read what it writes.

    Args:
        folder: Where; replaced if it is there.

    Raises:
        ValueError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder must be a folder or new, got the file {folder}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    new, old = workspace / "new", workspace / "old"
    try:
        new.mkdir()
        yield new
        probe = workspace / "probe"
        probe.touch()
        for path in new.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(probe.stat().st_mode & 0o777)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        # If the old one can not go back either, this raises and leaves it in the workspace.
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(workspace)
        raise
    shutil.rmtree(workspace)
