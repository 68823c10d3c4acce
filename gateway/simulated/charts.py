"""A symbol's past as numpy arrays: the same prices as `Market.quote`, many at a time.

A terminal keeps its own charts; here they follow from the seed, so each terminal draws them itself and the broker is
not kept busy. numpy is imported with this module, that is when a chart is first asked for.

Bars up to 30 minutes are made of every tick, those of hours of one tick in ten, longer ones of one in a hundred and
twenty: a day has 172,800 ticks.
"""

from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from gateway.simulated import constants as c
from gateway.simulated.market import OCTAVES, noise_keys
from gateway.simulated.symbols import DAY_MS, MINUTE_MS, SymbolSpec

RATES_TYPE: Final = np.dtype(
    [
        ("time", "<i8"), ("open", "<f8"), ("high", "<f8"), ("low", "<f8"), ("close", "<f8"), ("tick_volume", "<u8"),
        ("spread", "<i4"), ("real_volume", "<u8"),
    ]
)  # fmt: skip
TICKS_TYPE: Final = np.dtype(
    [
        ("time", "<i8"), ("bid", "<f8"), ("ask", "<f8"), ("last", "<f8"), ("volume", "<u8"), ("time_msc", "<i8"),
        ("flags", "<u4"), ("volume_real", "<f8"),
    ]
)  # fmt: skip
OLDEST_S: Final = 946_684_800  # 2000-01-01: nothing was recorded before
MAX_TICKS: Final = 2_000_000
_CHUNK: Final = 500_000  # samples at a time
_WEEK_MS: Final = 7 * DAY_MS
_SUNDAY_MS: Final = 3 * DAY_MS  # the first Sunday after the epoch
_HOUR: Final = 0x4000
_WEEK: Final = 0x8000
_MONTH: Final = 0xC000

Array = np.ndarray[Any, np.dtype[Any]]


class Chart:
    """One symbol as its terminal knows it at `now_ms` (UTC). `moves` are (from UTC ms, points)."""

    def __init__(self, seed: int, offset_ms: int, now_ms: int, spec: SymbolSpec, moves: list[tuple[int, int]]) -> None:
        self.spec = spec
        self.offset_ms = offset_ms
        self.now_ms = now_ms + offset_ms  # server
        self.keys = noise_keys(seed, spec.name)
        self.moves = moves

    # ---- ticks

    def ticks_from(self, first_s: int, count: int, flags: int) -> Array:
        """Ticks from then on, at most `count`, and at most MAX_TICKS."""
        found: list[Array] = []
        count = min(count, MAX_TICKS)
        at, last = self._tick_from(first_s * 1000), self.now_ms
        while at <= last and count > 0:
            size = min(max(count, 1000), _CHUNK)
            part = self._ticks(at, min(at + size * self.spec.tick_ms, last + 1), flags)[:count]
            found.append(part)
            count -= len(part)
            at += size * self.spec.tick_ms
        return _joined(found, TICKS_TYPE)

    def ticks_range(self, first_s: int, last_s: int, flags: int) -> Array:
        """Ticks in [first, last], the newest MAX_TICKS of them."""
        last = min(last_s * 1000 + 999, self.now_ms)
        first = max(self._tick_from(first_s * 1000), last - MAX_TICKS * self.spec.tick_ms)
        return self._ticks(self._tick_from(first), last + 1, flags)

    def _tick_from(self, server_ms: int) -> int:
        step = self.spec.tick_ms
        start = max(server_ms, OLDEST_S * 1000) - self.offset_ms
        return -(-start // step) * step + self.offset_ms

    def _ticks(self, first: int, until: int, flags: int) -> Array:
        """Server milliseconds [first, until), where the symbol is quoted."""
        if flags == c.COPY_TICKS_TRADE and not self.spec.is_exchange():
            return np.empty(0, TICKS_TYPE)
        times = self._open_times(np.arange(first, until, self.spec.tick_ms, dtype=np.int64))
        bid, ask, volume = self._quotes(times)
        ticks = np.zeros(len(times), TICKS_TYPE)
        ticks["time"], ticks["time_msc"] = times // 1000, times
        ticks["bid"], ticks["ask"] = bid / self.spec.scale, ask / self.spec.scale
        ticks["flags"] = c.TICK_FLAG_BID | c.TICK_FLAG_ASK
        if self.spec.is_exchange():
            ticks["last"] = (bid + ask) // 2 / self.spec.scale
            ticks["volume"], ticks["volume_real"] = volume, volume
            ticks["flags"] |= c.TICK_FLAG_LAST | c.TICK_FLAG_VOLUME
        return ticks

    def _open_times(self, times: Array) -> Array:
        if not self.spec.sessions:
            return times
        day, minute = (times // DAY_MS + 4) % 7, times % DAY_MS / MINUTE_MS
        is_open = np.zeros(len(times), bool)
        for weekday, start, end in self.spec.sessions:
            is_open |= (day == weekday) & (minute >= start) & (minute < end)
        return times[is_open]

    def _quotes(self, times: Array) -> tuple[Array, Array, Array]:
        """Bid and ask in points, and the volume traded, at these server times: as `Market` has them, bit by bit."""
        spec, utc = self.spec, times - self.offset_ms
        noise = np.zeros(len(utc))
        for (period, share), key in zip(OCTAVES, self.keys, strict=False):
            cell, rest = np.divmod(utc, period)
            left, right = _lattice(key, cell), _lattice(key, cell + 1)
            x = rest / period
            noise += share * (left + (right - left) * x * x * (3 - 2 * x))
        middle = np.rint(spec.base_price * spec.scale * (1 + spec.amplitude * noise)).astype(np.int64)
        if self.moves:
            since = np.array([from_ms for from_ms, _ in self.moves], np.int64)
            points = np.array([0, *(moved for _, moved in self.moves)], np.int64)
            middle += points[np.searchsorted(since, utc + spec.tick_ms - 1, side="right")]
        index = (utc // spec.tick_ms).astype(np.uint64)
        fifth = spec.spread_points // 5
        extra = _mix(np.uint64(self.keys[-1]) ^ index) % np.uint64(2 * fifth + 1)
        spread = spec.spread_points - fifth + extra.astype(np.int64)
        bid = np.maximum(middle - spread // 2, 1)
        volume = np.uint64(1) + _mix(np.uint64(self.keys[-1]) ^ ~index) % np.uint64(100)
        return bid, bid + spread, volume

    # ---- bars

    def rates_from(self, timeframe: int, last_s: int, count: int) -> Array:
        """`count` bars up to the one that is open at `last_s`, oldest first."""
        return self._bars_back(timeframe, min(last_s * 1000, self.now_ms), count)

    def rates_from_pos(self, timeframe: int, position: int, count: int) -> Array:
        """`count` bars up to the one that is `position` bars before the present one."""
        bars = self._bars_back(timeframe, self.now_ms, position + count)
        return bars[: len(bars) - position] if position else bars

    def rates_range(self, timeframe: int, first_s: int, last_s: int, limit: int) -> Array:
        """Bars that open in [first, last], the newest `limit` of them."""
        last = min(last_s * 1000, self.now_ms)
        bars = self._bars_back(timeframe, last, limit, oldest_ms=first_s * 1000)
        wanted: Array = bars[bars["time"] >= first_s]
        return wanted

    def _bars_back(self, timeframe: int, last_ms: int, count: int, oldest_ms: int = 0) -> Array:
        """Bars by chunks of time, newest chunk first, until there are enough."""
        oldest_ms = max(oldest_ms, OLDEST_S * 1000)
        if last_ms < oldest_ms:
            return np.empty(0, RATES_TYPE)
        step = self._step(timeframe)
        length = _length_ms(timeframe)
        until = _next_bar(timeframe, last_ms)
        found: list[Array] = []
        total = 0
        while until > oldest_ms and total < count:
            span = max(min((count - total + 1) * length, _CHUNK * step), length)
            first = _bar_start(timeframe, max(until - span, oldest_ms))
            bars = self._bars(timeframe, first, min(until, self.now_ms + 1), step)
            found.append(bars)
            total += len(bars)
            until = first
        bars = _joined(found[::-1], RATES_TYPE)
        return bars[-count:]

    def _step(self, timeframe: int) -> int:
        """Milliseconds between the samples a bar is made of."""
        kind = timeframe & 0xC000
        if kind == 0:
            return self.spec.tick_ms
        daily = kind != _HOUR or timeframe & 0x3FFF >= 24
        return self.spec.tick_ms * (120 if daily else 10)

    def _bars(self, timeframe: int, first: int, until: int, step: int) -> Array:
        aligned = -(-(first - self.offset_ms) // step) * step + self.offset_ms
        times = self._open_times(np.arange(aligned, until, step, dtype=np.int64))
        if not len(times):
            return np.empty(0, RATES_TYPE)
        bid, ask, volume = self._quotes(times)
        price = (bid + ask) // 2 if self.spec.is_exchange() else bid
        opens = _bar_starts(timeframe, times)
        starts = np.flatnonzero(np.concatenate(([True], opens[1:] != opens[:-1])))
        ends = np.append(starts[1:], len(times)) - 1
        bars = np.zeros(len(starts), RATES_TYPE)
        bars["time"] = opens[starts] // 1000
        bars["open"], bars["close"] = price[starts] / self.spec.scale, price[ends] / self.spec.scale
        bars["high"] = np.maximum.reduceat(price, starts) / self.spec.scale
        bars["low"] = np.minimum.reduceat(price, starts) / self.spec.scale
        bars["tick_volume"] = (ends - starts + 1) * (step // self.spec.tick_ms)
        bars["spread"] = np.minimum.reduceat(ask - bid, starts)
        if self.spec.is_exchange():
            bars["real_volume"] = np.add.reduceat(volume, starts)
        return bars


def _mix(value: Array) -> Array:
    value = value * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = value ^ (value >> np.uint64(31))
    return mixed


def _lattice(key: int, cells: Array) -> Array:
    """Where neighbouring times share a cell, each cell is computed once."""
    first, last = (int(cells[0]), int(cells[-1])) if len(cells) else (0, -1)
    shared = last - first < len(cells)
    wanted = np.arange(first, last + 1, dtype=np.int64) if shared else cells
    values: Array = _mix(wanted.astype(np.uint64) + np.uint64(key)).astype(np.float64) / float(1 << 63) - 1.0
    return values[cells - first] if shared else values


def _joined(parts: list[Array], kind: "np.dtype[Any]") -> Array:
    return np.concatenate(parts) if parts else np.empty(0, kind)


# ---- where bars begin, in server milliseconds


def _length_ms(timeframe: int) -> int:
    number, kind = timeframe & 0x3FFF, timeframe & 0xC000
    if kind == _MONTH:
        return 31 * DAY_MS
    if kind == _WEEK:
        return _WEEK_MS
    return number * (60 * MINUTE_MS if kind == _HOUR else MINUTE_MS)


def _bar_starts(timeframe: int, times: Array) -> Array:
    kind = timeframe & 0xC000
    if kind == _MONTH:
        months: Array = times.astype("datetime64[ms]").astype("datetime64[M]").astype("datetime64[ms]").astype(np.int64)
        return months
    length, shift = _length_ms(timeframe), _SUNDAY_MS if kind == _WEEK else 0
    starts: Array = (times - shift) // length * length + shift
    return starts


def _bar_start(timeframe: int, ms: int) -> int:
    return int(_bar_starts(timeframe, np.array([ms], np.int64))[0])


def _next_bar(timeframe: int, ms: int) -> int:
    """Where the bar after the one at `ms` begins."""
    start = _bar_start(timeframe, ms)
    if timeframe & 0xC000 != _MONTH:
        return start + _length_ms(timeframe)
    day = datetime.fromtimestamp(start / 1000, UTC)
    following = day.replace(year=day.year + day.month // 12, month=day.month % 12 + 1)
    return int(following.timestamp()) * 1000
