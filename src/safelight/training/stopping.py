"""SIGTERM and SIGINT during training: the first one asks, the second one kills."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """While entered, remembers the first signal instead of dying of it.

    After the first one the system's own answer is put back, which needs no Python: a second signal ends the
    process at once, even in the middle of a long operation.
    """

    def __init__(self) -> None:
        self.signal: int = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process that this signal ended: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signal
