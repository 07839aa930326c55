"""What is known about finished requests: events, and what observers turn them into."""
