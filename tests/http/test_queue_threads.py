"""However many requests wait behind an engine that hangs, they hold no threads."""

from __future__ import annotations

import threading
import unittest

from tests.onloop import OnLoopTest, completion
from tests.support import eventually

QUEUED = 1000
FIXED_THREADS = 12  # the gateway's own, whatever it is asked


class Queued(OnLoopTest):
    def test_a_thousand_queued_requests_hold_no_thread_each(self) -> None:
        for workers in (1, 8):
            with self.subTest(workers=workers):
                before = set(threading.enumerate())
                running, engine = self.one_engine(WORKERS=workers, QUEUE_SIZE=QUEUED, MAX_CONNECTIONS=2 * QUEUED)
                sides = []
                for _ in range(workers):
                    self.begin(running)
                    sides.append(engine.take())
                clients = [self.begin(running) for _ in range(QUEUED)]
                eventually(lambda running=running: running.app.workers.depth == QUEUED)
                self.assertLessEqual(len(set(threading.enumerate()) - before), workers + FIXED_THREADS)
                for client in clients[1:]:
                    client.close()
                eventually(lambda running=running: running.app.workers.depth == 1)
                sides[0].answer(completion())
                sides[0].read_request().answer(completion("queued"))
                self.assert_says(clients[0], "queued")
                self.assertLessEqual(len(set(threading.enumerate()) - before), workers + FIXED_THREADS)


if __name__ == "__main__":
    unittest.main()
