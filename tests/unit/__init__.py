"""Tests that open no socket and start no gateway: one module, one class, a fake clock."""
