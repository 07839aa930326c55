"""Asking engines: connections, one HTTP exchange, what an answer means. Knows nothing of clients or of choosing."""
