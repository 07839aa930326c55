"""Commands that are not the server: load tests, simulation, replay."""
