"""Files that a command writes at its end: whether they can be made is told before its work, which may be long."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from thunderagent.errors import ConfigError

__all__ = ["check_output"]


def check_output(option: str, path: Path, endings: Sequence[str] = ()) -> None:
    """Could ``path`` be written, and does its name end as it must?

    Raises:
        ConfigError: it could not, or ends otherwise; names ``option``.
    """
    wrong = _what_keeps_from_writing(path)
    if wrong is not None:
        raise ConfigError(f"{option} {path}: {os.strerror(wrong)}")
    if endings and path.suffix not in endings:
        *others, last = endings
        told = f"{', '.join(others)} or {last}" if others else last
        raise ConfigError(f"{option} {path}: the file's name must end in {told}")


def _what_keeps_from_writing(path: Path) -> int | None:
    """The number of the system's error; None where nothing does."""
    try:
        if path.is_dir():
            return errno.EISDIR
        if not path.parent.is_dir():
            return errno.ENOTDIR if path.parent.exists() else errno.ENOENT
        return None if os.access(path if path.exists() else path.parent, os.W_OK) else errno.EACCES
    except OSError as error:  # a name that is too long, a folder that may not be searched
        return error.errno or errno.EIO
