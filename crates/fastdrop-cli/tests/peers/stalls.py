"""Times in which this process was kept from the processor: whatever it saw too late then proves nothing about the other end."""

import threading
import time

STEP = 0.01


class Watch:
    """Measures until the end of the process how long it was kept from going on."""

    def __init__(self, limit):
        self.limit, self.longest = limit, 0.0
        threading.Thread(target=self.measure, daemon=True).start()

    def measure(self):
        while True:
            begin = time.monotonic()
            time.sleep(STEP)
            self.note(time.monotonic() - begin - STEP)

    def note(self, seconds):
        """So long something took that takes no time."""
        self.longest = max(self.longest, seconds)

    def report(self):
        """Prints a last line if there was such a time."""
        if self.longest > self.limit:
            print("stalled", flush=True)
