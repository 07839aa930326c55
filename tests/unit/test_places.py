"""How long places are held: what is told to who waits for one."""

from __future__ import annotations

import unittest

from gateway.limits.places import WAIT_MIN_S, Places


class PlacesTest(unittest.TestCase):
    def test_places_are_counted(self) -> None:
        places = Places()
        numbers = [places.take(1.0) for _ in range(3)]
        self.assertEqual(len(places), 3)
        places.give_back(numbers[1], 2.0)
        self.assertEqual(len(places), 2)

    def test_before_anything_is_known_one_waits_as_long_as_the_oldest_has_been_there(self) -> None:
        places = Places()
        self.assertEqual(places.wait_s(0.0), WAIT_MIN_S)
        places.take(0.0)
        self.assertEqual([places.wait_s(now_s) for now_s in (0.0, 1.0, 3.0, 6.0)], [1.0, 1.0, 3.0, 6.0])

    def test_what_is_usual_elsewhere_serves_until_something_is_known_here(self) -> None:
        places = Places()
        number = places.take(0.0)
        self.assertEqual(places.wait_s(1.0, usual_s=5.0), 4.0)
        places.give_back(number, 3.0)
        places.take(10.0)
        self.assertEqual(places.wait_s(10.0, usual_s=5.0), 3.0)

    def test_it_is_what_is_left_to_the_one_that_is_held_longest(self) -> None:
        places = Places()
        places.give_back(places.take(0.0), 8.0)
        first = places.take(10.0)
        places.take(12.0)
        self.assertEqual([places.wait_s(now_s) for now_s in (12.0, 14.0, 17.5, 18.5)], [6.0, 4.0, 1.0, 1.0])
        self.assertEqual(places.wait_s(26.0), 8.0, "twice the usual: as long again beyond it")
        places.give_back(first, 18.0)
        self.assertEqual(places.wait_s(18.0), 2.0)

    def test_the_average_follows_and_forgets(self) -> None:
        places = Places()
        for held_s in [1.0] * 5 + [6.0]:
            places.give_back(places.take(0.0), held_s)
        self.assertAlmostEqual(places.usual_s, 2.0)
        for _ in range(30):
            places.give_back(places.take(0.0), 6.0)
        self.assertAlmostEqual(places.usual_s, 6.0, delta=0.01)

    def test_a_clock_that_runs_backwards_does_no_harm(self) -> None:
        places = Places()
        places.give_back(places.take(10.0), 5.0)
        self.assertEqual(places.usual_s, 0.0)
        places.take(10.0)
        self.assertEqual(places.wait_s(5.0), 5.0)


if __name__ == "__main__":
    unittest.main()
