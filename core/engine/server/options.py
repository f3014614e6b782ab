"""How the HTTP server is to run. Plain data; the command line fills it."""

import math
from dataclasses import dataclass

from engine.errors import ConfigError

LOG_LEVELS = ("critical", "error", "warning", "info", "debug")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """Raises ConfigError where a value is out of range."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: a free one, named in the ready line
    uds: str | None = None  # path of a unix socket, instead of host and port
    served_model_names: tuple[str, ...] = ()  # the first one is shown; empty: as given to --model
    api_keys: tuple[str, ...] = ()  # any of them opens /v1; empty: no key is asked for
    chat_template: str | None = None  # path of a Jinja file that replaces the model's own
    shutdown_timeout_s: float = 30.0  # running requests may take this long after SIGTERM
    linger_s: float = 3.0  # how long a server whose engine died still answers, so that it is seen
    max_queue: int | None = None  # requests that wait for their first token; more are refused (429)
    max_body_bytes: int = 32 * 1024 * 1024
    body_timeout_s: float = 60.0  # for a client to send the whole body
    allowed_origins: tuple[str, ...] = ()  # browsers' pages that may call the API; "*": any
    access_log: bool = False
    log_level: str = "info"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be from 0 to 65535, got {self.port}")
        if self.log_level not in LOG_LEVELS:
            raise ConfigError(
                f"log_level must be one of {', '.join(LOG_LEVELS)}, got {self.log_level!r}"
            )
        for name, seconds in (
            ("shutdown_timeout_s", self.shutdown_timeout_s),
            ("linger_s", self.linger_s),
            ("body_timeout_s", self.body_timeout_s),
        ):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ConfigError(f"{name} must be at least 0 seconds, got {seconds}")
        if self.max_queue is not None and self.max_queue < 1:
            raise ConfigError(f"max_queue must be at least 1, got {self.max_queue}")
        if self.max_body_bytes < 1:
            raise ConfigError(f"max_body_bytes must be at least 1, got {self.max_body_bytes}")
        if any(not key for key in self.api_keys):
            raise ConfigError("an API key must not be empty: it would open the server to anyone")
        if any(not name for name in self.served_model_names):
            raise ConfigError("a served model name must not be empty")
