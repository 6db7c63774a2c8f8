"""Wait for something until it is there, or until nothing moves any more; not for as long as one machine once took.

On a machine four times slower, or a busy one, all takes four times longer and goes well. What tells whether it goes on
is a sign: a value that changes while what is waited for comes nearer, as do the states of tasks, the rows that were
written, the size of a log, the work of a process. It must be honest: a process that lives, or answers that it is well,
or looks every second whether there is anything to do, may do so for ever.
"""

import time
from collections.abc import Callable
from math import inf

from utils.errors import GaveUp

LOOKS = 10  # at the sign while patience lasts; it may cost more than the question whether the thing is there


class Patience:
    """It ends once `sign` has been the same for `seconds`.

    `what` is waited for, as in "gave up on …". `longest`: seconds after which it ends in any case, for a sign that may
    go on changing for ever. `state` says for the error how things stand, by default the sign itself does.
    """

    def __init__(
        self,
        what: str,
        sign: Callable[[], object] = lambda: None,
        *,
        seconds: float = 60.0,
        longest: float = inf,
        state: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._what, self._sign, self._seconds, self._longest = what, sign, seconds, longest
        self._state, self._clock, self._pause = state or sign, clock, pause
        self._begun = self._moved = self._looked = clock()
        self._seen = sign()

    def until[Found](self, look: Callable[[], Found | None], *, every: float = 0.05) -> Found:
        """The first true value of `look`, which is asked again after `every` seconds.

        Raises: GaveUp; and whatever `look` raises, as it should where it sees that the thing can't come any more.
        """
        while not (found := look()):
            self.check()
            self._pause(every)
        return found

    def check(self) -> None:
        """For a loop of one's own: return while it is worth to go on. Raises: GaveUp."""
        now = self._clock()
        if now - self._looked >= self._seconds / LOOKS or now - self._moved >= self._seconds:
            self._looked, before, self._seen = now, self._seen, self._sign()
            if self._seen != before:
                self._moved = now
        waited, still = now - self._begun, now - self._moved
        if still >= self._seconds or waited >= self._longest:
            raise GaveUp(what=self._what, waited=waited, still=still, state=self._state())
