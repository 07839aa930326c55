"""Ollama's own API, as clients speak it: its requests become chat requests, completions and embeddings, and back.

`request` reads, `conversation` answers, `pages` shows what there is. Models are neither loaded nor unloaded for a
client, and their prompts are made by engines: what asks for either is passed over where the answer is the same without
it, and refused where it is not.
"""
