"""Who may ask over HTTP, and how often: bearer tokens with roles, and limits by address. No I/O, no clock."""

import hashlib
import hmac
import ipaddress
import re
from collections import OrderedDict
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

import msgspec

MIN_TOKEN: Final = 24  # of 64 characters: 144 bits when made at random
MAX_ADDRESSES: Final = 10_000
FAILURES_ALLOWED: Final = 10
FAILURES_FORGOTTEN_S: Final = 60.0
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class Role(StrEnum):
    """`auditor` reads what was recorded, to the byte; `operator` what runs, and the orders without their bytes."""

    AUDITOR = "auditor"
    OPERATOR = "operator"


EVERYBODY: Final = frozenset(Role)


class Token(msgspec.Struct, frozen=True):
    """SHA-256 of a token, and when it ends. The text itself is not kept."""

    digest: bytes
    until: datetime | None = None


def parse_tokens(text: str) -> list[Token]:
    """The tokens of a comma list: `TOKEN` or `TOKEN@2027-01-31T00:00:00Z`. Raises ValueError, which shows none."""
    found = []
    for number, one in enumerate(filter(None, (part.strip() for part in text.split(","))), 1):
        secret, _, end = one.partition("@")
        if _TOKEN.fullmatch(secret) is None or len(secret) < MIN_TOKEN:
            raise ValueError(
                f"must be a comma list of tokens of at least {MIN_TOKEN} letters, digits and ._~+/-; "
                f"number {number} is not (make one with `openssl rand -hex 24`)"
            )
        try:
            until = datetime.fromisoformat(end) if end else None
        except ValueError:
            raise ValueError(
                f"must name the end of a token as @2027-01-31T00:00:00Z; number {number} does not"
            ) from None
        if until is not None and until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        found.append(Token(_digest(secret), until))
    return found


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class Tokens:
    """The tokens of every role. Without any, whoever reaches the port has every role: only loopback may then listen."""

    def __init__(self, auditor: str = "", operator: str = "") -> None:
        self._tokens = [(Role.AUDITOR, one) for one in parse_tokens(auditor)]
        self._tokens += [(Role.OPERATOR, one) for one in parse_tokens(operator)]

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def roles(self, authorization: str, now: datetime) -> frozenset[Role] | None:
        """The roles of a header `Authorization`; None when it holds no token that is known and has not ended.

        Takes the same time whichever token it is, and whether it is one: every digest is compared, in constant time.
        """
        scheme, _, secret = authorization.partition(" ")
        given = _digest(secret.strip())
        found: set[Role] = set()
        for role, token in self._tokens:
            same = hmac.compare_digest(given, token.digest)
            if same and (token.until is None or now < token.until):
                found.add(role)
        return frozenset(found) if found and scheme.lower() == "bearer" else None


class _Bucket:
    __slots__ = ("at", "level")

    def __init__(self, at: float) -> None:
        self.at, self.level = at, 0.0


class Limit:
    """A leaky bucket for each address: `burst` at once, `per_s` in the long run. Addresses are forgotten, the one
    that was quiet longest first, so that hostile ones cannot fill the memory."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, address: str, now_s: float) -> float:
        """Counts one. Returns 0 when it may pass, else the seconds until one may; that one is not counted."""
        wait_s = self.full(address, now_s)
        if not wait_s:
            bucket = self._buckets.setdefault(address, _Bucket(now_s))
            bucket.level += 1
            self._buckets.move_to_end(address)
            if len(self._buckets) > MAX_ADDRESSES:
                self._buckets.popitem(last=False)
        return wait_s

    def full(self, address: str, now_s: float) -> float:
        """The seconds until one more may pass, 0 when it may now. Counts nothing."""
        bucket = self._buckets.get(address)
        if bucket is None:
            return 0.0
        bucket.level = max(0.0, bucket.level - (now_s - bucket.at) * self._per_s)
        bucket.at = now_s
        over = bucket.level + 1 - self._burst
        return over / self._per_s if over > 1e-9 else 0.0


def failure_limit() -> Limit:
    """Of wrong tokens: ten, then one every six seconds."""
    return Limit(FAILURES_ALLOWED / FAILURES_FORGOTTEN_S, FAILURES_ALLOWED)


def address_key(address: str) -> str:
    """What counts as one address: of IPv6 the network of a customer, since each has 2^64 of them."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine reaches what listens on `host`."""
    address = _address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def is_unspecified(host: str) -> bool:
    """Whether what listens on `host` listens on every address of the machine, and so names none of them."""
    address = _address(host)
    return address is not None and address.is_unspecified


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address a host is written as; None for a name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def names_loopback(host_header: str) -> bool:
    """Whether a request was sent to a loopback name. A web page could otherwise reach a loopback port through a name
    of its own."""
    host = host_header.rpartition(":")[0] if host_header.count(":") == 1 else host_header
    if host.startswith("["):
        host = host.partition("]")[0]
    return is_loopback(host)


def comes_from_loopback(origin: str) -> bool:
    """Whether the page that a browser names as the origin of a request is one of this machine."""
    try:
        return is_loopback(urlsplit(origin).hostname or "")
    except ValueError:
        return False
