"""Log lines of the server on stderr: text for people, JSON for collectors.

A thread writes them. Whoever reads stderr may be slow, or not read at all: that holds up no call.
Lines that find no room any more are dropped and counted.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

from edgewright.serve.call_record import current_call

FORMATS: Final = ("text", "json")
LINES: Final = 10_000  # that may wait for their writer
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LAST_S: Final = 5.0  # for the lines that wait at the end


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and the exception if any.

    Lines about a call have its ``request_id``, those of the access log their fields, and those of
    a server of several processes the ``process`` that writes them.
    """

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record, self._process),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Lines for people; what JSON has as fields stands at the end of a line."""

    def __init__(self, process: str = "") -> None:
        super().__init__(_TEXT)
        self._process = process

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's name
        """The line, but for the exception."""
        told = "".join(f" {name}={value}" for name, value in _fields(record, self._process).items())
        return super().formatMessage(record) + told


def _fields(record: logging.LogRecord, process: str) -> dict[str, Any]:
    written_by = {"process": process} if process else {}
    return {**written_by, **getattr(record, "ids", {}), **getattr(record, "fields", {})}


class LogThread(logging.Handler):
    """Hands records to a thread that writes them; use it as a context manager."""

    def __init__(self, writer: logging.Handler, *, lines: int = LINES) -> None:
        super().__init__()
        self.dropped: Callable[[], None] = lambda: None  # told of each line that finds no room
        self._writer = writer
        self._lines = lines
        self._waiting: deque[logging.LogRecord] = deque()
        self._some = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Let it be written; never waits."""
        if len(self._waiting) >= self._lines:
            self.dropped()
            return
        call = current_call.get()
        if call is not None:
            ids = {"request_id": call.request_id}
            record.ids = ids | ({"trace_id": call.trace_id} if call.trace_id else {})
        self._waiting.append(record)
        self._some.set()

    @property
    def stuck(self) -> bool:
        """Whether the writer waits, after ``close``, for somebody who does not read."""
        return self._closing and self._thread.is_alive()

    def close(self) -> None:
        """Write what waits, if it can be written soon."""
        self._closing = True
        self._some.set()
        self._thread.join(_LAST_S)
        super().close()

    def __enter__(self) -> LogThread:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        logging.getLogger().removeHandler(self)
        self.close()

    def _write(self) -> None:
        while self._waiting or not self._closing:
            self._some.wait()
            self._some.clear()
            while self._waiting:
                self._writer.handle(self._waiting.popleft())


def _is_no_odd_header(record: logging.LogRecord) -> bool:
    """gRPC tells a header that is no UTF-8 as an error, so that any caller could fill the log."""
    return not str(record.msg).startswith("Invalid encoding")


def log_to_stderr(style: str, *, level: int, process: str = "") -> LogThread:
    """Send the log of the process to stderr; our own lines from ``level``, others' from WARNING.

    ``process`` names it in every line, where there are several.
    """
    writer = logging.StreamHandler()
    writer.setFormatter(JsonFormatter(process) if style == "json" else TextFormatter(process))
    thread = LogThread(writer)
    logging.basicConfig(level=logging.WARNING, handlers=[thread], force=True)
    logging.getLogger("edgewright").setLevel(level)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_odd_header)
    return thread
