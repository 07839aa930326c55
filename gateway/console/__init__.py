"""The console's static files, as they lie beside this one: no build, nothing from elsewhere.

`index.html` is served at `/` to who prefers HTML, the others at `/console/<name>`. A folder of the package, so that a
wheel and a zip have it, too; there is nothing in it for Python.
"""
