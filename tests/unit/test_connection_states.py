"""What a client's connection does: each state is in its tables, and in the one that is read."""

from __future__ import annotations

import unittest

from gateway.server import connection
from gateway.server.connection import State


class StatesTest(unittest.TestCase):
    def test_each_state_says_what_happens_when_its_socket_is_ready_and_when_its_time_is_over(self) -> None:
        self.assertEqual(set(connection._ON_READY), set(State))
        self.assertEqual(set(connection._WHEN_DUE), set(State))

    def test_the_table_that_is_read_tells_of_each_but_the_end(self) -> None:
        rows = [line.split()[0] for line in (connection.__doc__ or "").splitlines() if line.startswith("    ")]
        self.assertEqual(rows[1:], [state.name for state in State if state is not State.CLOSED])


if __name__ == "__main__":
    unittest.main()
