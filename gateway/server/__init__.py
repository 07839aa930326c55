"""Clients' connections: reading requests, writing answers, noticing who leaves. The only user of http.server."""
