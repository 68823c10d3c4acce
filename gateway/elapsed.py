"""Time by which ages are measured: nobody sets it, it is the same in every process of the machine, and it goes on while
the machine is suspended, so that what was prepared before is old afterwards."""

import time

if hasattr(time, "CLOCK_BOOTTIME"):  # Linux, where the monotonic clock stands still meanwhile

    def elapsed() -> float:
        """Seconds since the machine started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:  # on Windows the monotonic clock goes on

    def elapsed() -> float:
        """Seconds since the machine started."""
        return time.monotonic()
