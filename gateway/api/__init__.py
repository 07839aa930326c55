"""What the HTTP API is, as data: every operation with its description, the OpenAPI document and the page made of them.

Routes are built from the same operations (server/routes.py, server/admin.py), and so are the paths that metrics know.
"""
