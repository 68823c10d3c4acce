"""The connection to NATS: how to log in, and what the server promises.

User and password, token, NKey seed or credentials file, and TLS, all by settings from the environment; none of them
is ever shown.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
import nats.errors
import structlog
from nats.aio.client import Client

from gateway.config import Settings, safe_url

log = structlog.get_logger()

CONNECT_S: Final = 10.0
MONITOR_S: Final = 3.0
_Heard = Callable[[], Awaitable[None]]


class NatsUnreachable(Exception):
    """One line for a person: which servers, why, and what to look at."""


def login_options(settings: Settings) -> dict[str, Any]:
    """What `nats.connect` needs to log in. Raises NatsUnreachable for certificates that cannot be used."""
    options: dict[str, Any] = {}
    if settings.nats_user:
        options |= {"user": settings.nats_user, "password": settings.nats_password.reveal()}
    if settings.nats_token:
        options["token"] = settings.nats_token.reveal()
    if settings.nats_nkey:
        options["nkeys_seed_str"] = settings.nats_nkey.reveal().strip()
    if settings.nats_creds:
        options["user_credentials"] = settings.nats_creds
    if settings.nats_tls_ca or settings.nats_tls_cert:
        options["tls"] = _tls(settings)
    return options


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.nats_tls_ca or None)
        if settings.nats_tls_cert:
            context.load_cert_chain(settings.nats_tls_cert, settings.nats_tls_key)
    except (ssl.SSLError, OSError) as error:
        files = ", ".join(
            name
            for name, path in (
                ("NATS_TLS_CA", settings.nats_tls_ca),
                ("NATS_TLS_CERT", settings.nats_tls_cert),
                ("NATS_TLS_KEY", settings.nats_tls_key),
            )
            if path
        )
        raise NatsUnreachable(f"the TLS files of {files} cannot be used: {error.strerror or error}") from None
    return context


async def _silent() -> None:
    pass


async def connect(
    settings: Settings,
    servers: list[str],
    *,
    name: str,
    disconnected: _Heard = _silent,
    reconnected: _Heard = _silent,
    reconnect: bool = True,
    within_s: float = CONNECT_S,
) -> Client:
    """A connection to one of the servers. Raises NatsUnreachable."""
    met: list[str] = []

    async def error(problem: Exception) -> None:
        text = str(problem) or type(problem).__name__
        if reconnect:  # a command says what it met where it fails
            log.debug("NATS", error=text)
        if len(met) < 20:
            met.append(text)

    options, client = login_options(settings), Client()
    try:
        await asyncio.wait_for(
            client.connect(
                servers,
                name=name,
                allow_reconnect=reconnect,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.5,  # type: ignore[arg-type]  # it sleeps as long
                disconnected_cb=disconnected,
                reconnected_cb=reconnected,
                error_cb=error,
                pending_size=16 * 1024 * 1024,
                **options,
            ),
            within_s,
        )
        return client
    except (TimeoutError, OSError, nats.errors.Error) as problem:
        reason = str(problem) or (met[-1] if met else "no answer")
    except Exception as problem:
        # A seed or a credentials file that cannot be read raises what its library likes: its text may hold secrets.
        reason = f"the credentials cannot be used ({type(problem).__name__})"
    with contextlib.suppress(Exception):  # it failed already: what matters is that nothing of it stays open
        await client.close()
    shown = ",".join(safe_url(one) for one in servers)
    raise NatsUnreachable(f"cannot reach NATS at {shown}: {reason}")


async def warn_of_early_acks(settings: Settings) -> None:
    """Says so when the server acknowledges messages before they are on its disk, or when that cannot be told.

    JetStream syncs every two minutes unless `sync_interval: always` is set; a power cut then loses what was
    acknowledged. The server tells at `/varz` of its monitoring port.
    """
    remedy = "set `sync_interval: always` in the server's jetstream block, or run replicas on several machines"
    if not settings.nats_monitor_url:
        log.info("NATS_MONITOR_URL is not set: whether NATS acknowledges before fsync is not known", remedy=remedy)
        return
    url = settings.nats_monitor_url.reveal().rstrip("/")
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=MONITOR_S)) as session,
            session.get(f"{url}/varz") as response,
        ):
            told = await response.json(content_type=None)
        always = told["jetstream"]["config"].get("sync_always", False)
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("the monitoring of NATS does not answer", url=safe_url(url), error=type(error).__name__)
        return
    if always is not True:
        log.warning("NATS acknowledges messages before they are on its disk: a power cut loses orders", remedy=remedy)
