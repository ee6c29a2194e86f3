"""gRPC servers that no path of a call can end.

``grpc.aio`` (1.85 and before) decodes the path of a call strictly as UTF-8, in the task that
accepts calls, and where that fails it ends the server: one odd request of anybody would do. The
decoding has no option; what can be changed is what "strict" means, and here it is for those tasks
alone.
"""

from __future__ import annotations

import asyncio
import codecs
from typing import Any, Final
from weakref import WeakSet

_accepting: Final[WeakSet[asyncio.Task[Any]]] = WeakSet()
# The coroutine that takes in a server's calls. Those who answer them, of this server or of one that
# was started before, are to hear of what is no UTF-8.
_TAKES_CALLS: Final = "AioServer._server_main_loop"


async def start_accepting(rpc: Any) -> None:
    """Start a ``grpc.aio`` server; a path that is no UTF-8 is then one that no method has."""
    codecs.register_error("strict", _strict)
    before = asyncio.all_tasks()
    await rpc.start()
    new = asyncio.all_tasks() - before
    _accepting.update(
        task for task in new if getattr(task.get_coro(), "__qualname__", "") == _TAKES_CALLS
    )


def _strict(error: UnicodeError) -> tuple[str | bytes, int]:
    """As ever an error, but for a path."""
    if isinstance(error, UnicodeDecodeError) and _accepts():
        return "\N{REPLACEMENT CHARACTER}", error.end
    return codecs.strict_errors(error)


def _accepts() -> bool:
    """Whether the code that runs here now accepts calls."""
    try:
        return asyncio.current_task() in _accepting
    except RuntimeError:  # no event loop runs in this thread
        return False
