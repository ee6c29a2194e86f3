"""What gRPC is told of how this server wants to be called."""

from __future__ import annotations

from math import ceil
from typing import Any, Final

# Calls in flight over one connection. A client that has more keeps them, with their deadlines,
# and sends each when another has ended: nobody is refused for it.
MAX_CALLS_PER_CONNECTION: Final = 128
# Those that have ended, but whose memory is not free yet, of which a busy Python has many. A
# connection with more gets no further call (REFUSED_STREAM, at which clients call again).
MAX_ENDED_CALLS: Final = 512
# Calls over all connections that gRPC has taken in and the event loop has not come to. It cancels
# some beyond the first, all beyond the second; both bound memory and the wait that nobody sees.
# The first is as much as sixteen full connections. The second is where they stay under overload:
# were it far off, what is let in would have waited for that much longer.
MAX_UNSEEN_CALLS: Final = (2048, 2304)
# Of one address that is listened on. What connects beyond is closed at once.
MAX_CONNECTIONS: Final = 1024
# From the connection to the end of the handshakes of TLS and HTTP/2.
HANDSHAKE_MS: Final = 10_000
# Of the wait for the event loop. A busy machine may hold that up, and probes wait for it too.
LEAST_UNSEEN_S: Final = 5
_LONGEST_UNSEEN_S: Final = 3600
# A client that vanished without a word, as where its cable was pulled, is found by a ping.
PING_AFTER_MS: Final = 60_000
PING_TIMEOUT_MS: Final = 20_000


def connection_options(shares_port: bool = False) -> list[tuple[str, Any]]:
    """Who may connect, to whichever port."""
    return [
        # Two servers on one port would share calls in silence.
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    ]


def grpc_options(
    max_message_bytes: int,
    max_unseen_s: float,
    *,
    shares_port: bool = False,
    max_age_s: float | None = None,
) -> list[tuple[str, Any]]:
    """Arguments of the server's channels.

    ``max_unseen_s``: that a call waits for the event loop, or LEAST_UNSEEN_S where that is more.
    ``max_age_s``: of a connection, None for any.
    """
    # Calls in flight are finished over a connection that has come of age.
    age = [] if max_age_s is None else [("grpc.max_connection_age_ms", _ms(max_age_s))]
    unseen_s = max(LEAST_UNSEEN_S, ceil(min(max_unseen_s, _LONGEST_UNSEEN_S)))
    return [
        *connection_options(shares_port),
        *age,
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", MAX_CALLS_PER_CONNECTION),
        # Else calls that are reset at once would not count, and fill the room of everybody's.
        ("grpc.http.overload_protection", 1),
        ("grpc.http2.max_deallocating_streams", MAX_ENDED_CALLS),
        ("grpc.server.max_pending_requests", MAX_UNSEEN_CALLS[0]),
        ("grpc.server.max_pending_requests_hard_limit", MAX_UNSEEN_CALLS[1]),
        # In whole seconds. What has waited for longer is dropped when the loop asks for a call.
        ("grpc.server_max_unrequested_time_in_server", unseen_s),
        # Clients may ping to keep an idle connection through a proxy; the default calls it abuse.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", PING_AFTER_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ]


def _ms(seconds: float) -> int:
    """For gRPC, to which the largest is none at all."""
    return min(ceil(1000 * seconds), 2**31 - 1)
