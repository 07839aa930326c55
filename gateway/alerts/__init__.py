"""Alerts: rules over what has been counted, and telling of them."""
