"""The clock for ages: how old an intent, a proof or a price may be before it is acted upon."""

import time
from typing import Final

# On Linux the monotonic clock stands still while the machine is suspended: what was ready to be sent before would look
# as young after it. Windows' monotonic clock goes on meanwhile (GetTickCount64; from Python 3.13 on
# QueryPerformanceCounter).
_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def elapsed_s() -> float:
    """Seconds of a clock that never goes back, counts the time the machine sleeps, and is the same in all of its
    processes. Not the event loop's clock."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
