"""An orderly end on SIGTERM: no new instance starts, and every program is released before the exit."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType

from minisweagent_patch.programs import active_program_ids, release_active

logger = logging.getLogger("minisweagent_patch")

# Under the 10 s that container runtimes wait before they kill.
GRACE_SECONDS = 5.0
_RELEASE_SECONDS = 3.0

_stopping = threading.Event()


def release_on_termination(grace_seconds: float = GRACE_SECONDS) -> None:
    """Make SIGTERM and SIGHUP end this process in order, with exit status 128 + signal number.

    On the first signal ``SystemExit`` is raised in the main thread, pending instances do not start,
    and running ones have ``grace_seconds`` to end. Then what is still active is released (3 s at
    most) and the process ends, whatever its threads wait for. A second signal skips the grace. A
    signal that is ignored (nohup) stays ignored. Call it from the main thread.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if _stopping.is_set():
            end_process(128 + number)
        _stopping.set()
        threading.Thread(
            target=_end_after, args=(grace_seconds, 128 + number), name="program-stop", daemon=True
        ).start()
        logger.warning("%s: ending; %d programs active", signal.Signals(number).name, len(active_program_ids()))
        raise SystemExit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def refuse_when_stopping() -> None:
    """Keep an instance from starting once the process is ending. Raises ``SystemExit`` then."""
    if _stopping.is_set():
        raise SystemExit("the process is ending")


def end_process(status: int) -> None:
    """Release what is active and end the process without waiting for its threads; does not return."""
    _stopping.set()
    release_active(_RELEASE_SECONDS)
    if sys.stdout.isatty():  # a progress display hides the cursor and has no chance to show it
        os.write(sys.stdout.fileno(), b"\x1b[?25h\n")
    os._exit(status)


def _end_after(seconds: float, status: int) -> None:
    threading.Event().wait(seconds)
    end_process(status)
