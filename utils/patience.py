"""Wait until something is ready, or until nothing makes progress any more, instead of for a fixed time.

A fixed time fits only one machine. On a busy machine, or one that is four times slower, the same work takes four times
longer and still succeeds. So a wait watches a sign: a value that changes with every step towards the goal. Examples are
the states of tasks, the number of rows written, the size of a log, and the work of a process.

The sign must show real progress. A process that is merely alive, reports good health, or polls for work every second
does not count, because it can do so for ever.
"""

import time
from collections.abc import Callable
from math import inf

from utils.errors import GaveUp

LOOKS = 10  # times that the sign is read within the patience; reading it may cost more than the check for the goal


class Patience:
    """A wait that ends with an error once `sign` has not changed for `seconds`.

    what: what is waited for, as in "gave up on …".
    sign: returns a value that changes with every step of progress.
    seconds: the longest time without progress.
    longest: seconds after which the wait ends in any case. Set it where the sign may change for ever.
    state: returns the state for the error message. The default is `sign`.
    clock, pause: the clock and the sleep, both in seconds.
    """

    def __init__(
        self,
        what: str,
        sign: Callable[[], object],
        *,
        seconds: float,
        longest: float = inf,
        state: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._what, self._sign, self._seconds, self._longest = what, sign, seconds, longest
        self._state, self._clock, self._pause = state or sign, clock, pause
        self._started_at = self._progress_at = self._read_at = clock()
        self._last_sign = sign()

    def until[Result](self, look: Callable[[], Result | None], *, every: float = 0.05) -> Result:
        """Call `look` every `every` seconds and return its first true value.

        Raises: GaveUp, and every error of `look`. `look` should raise once it sees that the goal can't be reached.
        """
        while not (result := look()):
            self.check()
            self._pause(every)
        return result

    def check(self) -> None:
        """Return while there is progress. For callers with a loop of their own. Raises: GaveUp."""
        now = self._clock()
        if now - self._read_at >= self._seconds / LOOKS or now - self._progress_at >= self._seconds:
            self._read_at, before, self._last_sign = now, self._last_sign, self._sign()
            if self._last_sign != before:
                self._progress_at = now
        waited, still = now - self._started_at, now - self._progress_at
        if still >= self._seconds or waited >= self._longest:
            raise GaveUp(what=self._what, waited=waited, still=still, state=self._state())
