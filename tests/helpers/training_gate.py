"""A gate before training batches: the device thread waits at it, and it tells whose work came, batch by batch."""

import asyncio
import threading


class TrainingGate:
    """Stands before the programs of an engine's training batches. batches: the jobs of each that has come, in order."""

    def __init__(self, engine):
        self.batches = []
        self._start = engine._device_thread._start_program
        self._passes = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self._open = False
        engine._device_thread._start_program = self._pass

    def _pass(self, batch):
        self.batches.append(list(batch.jobs))
        self._arrived.release()
        if not self._open:
            assert self._passes.acquire(timeout=60)
        return self._start(batch)

    async def arrived(self):
        """Waits until one more batch has come to the gate."""
        assert await asyncio.to_thread(self._arrived.acquire, timeout=60)

    def let_pass(self, count=1):
        self._passes.release(count)

    def open(self):
        """Lets everything pass from now on."""
        self._open = True
        self._passes.release()
