"""Several processes that serve one address: a parent that supervises them, and what they tell each other through it."""
