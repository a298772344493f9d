"""The options of the gRPC server: the bounds of each connection, of its calls and its messages, and of their number."""

from seqloom_server.config import ServerConfig

# Calls that have arrived and that the event loop has not taken yet, over all connections. gRPC refuses calls beyond
# half of it at random, and all beyond it, without a reason or RetryInfo: so it is more than a burst that the engine
# would refuse properly, and less than what memory would not hold.
_MAX_PENDING = 100_000
_MIN_PING_SECONDS = 5.0  # an SDK client pings every 10 s at most


def channel_options(config: ServerConfig, connections: int) -> list[tuple[str, int]]:
    """Returns the options. connections: how many the process has room for."""
    return [
        ("grpc.so_reuseport", 0),  # else a second server would share the port and take half of the calls
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # the request's limits bound the response
        ("grpc.server.max_pending_requests", _MAX_PENDING // 2),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
        ("grpc.max_allowed_incoming_connections", connections),
        # without it a client that opens and resets calls makes the server hold what it has not ended yet, without bound
        ("grpc.max_concurrent_streams", config.max_calls_per_connection),
        # for calls that have ended and are not cleaned up yet: else a client that always has as many calls as it may is
        # refused some, with UNAVAILABLE
        ("grpc.http2.max_deallocating_streams", config.max_calls_per_connection),
        # the same for both: between them gRPC refuses calls at random
        ("grpc.max_metadata_size", config.max_header_bytes),
        ("grpc.absolute_max_metadata_size", config.max_header_bytes),
        ("grpc.server_handshake_timeout_ms", _ms(config.handshake_seconds)),
        ("grpc.max_connection_idle_ms", _ms(config.connection_idle_seconds)),
        # clients may ping every few seconds, also while no call is open
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(_MIN_PING_SECONDS)),
        ("grpc.keepalive_permit_without_calls", 1),
        # detects clients that vanished, so that their sessions end
        ("grpc.keepalive_time_ms", _ms(config.keepalive_seconds)),
        # how long unacknowledged bytes may be on their way (TCP_USER_TIMEOUT): gRPC itself ignores it
        ("grpc.keepalive_timeout_ms", _ms(config.keepalive_timeout_seconds)),
        # how long the answer to a ping may take, also where a proxy acknowledges the bytes; by default a minute
        ("grpc.http2.ping_timeout_ms", _ms(config.keepalive_timeout_seconds)),
    ]


def _ms(seconds: float) -> int:
    return max(1, round(min(seconds * 1e3, (1 << 31) - 1)))
