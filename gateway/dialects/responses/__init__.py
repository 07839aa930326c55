"""OpenAI's Responses, as clients speak it: a request becomes a chat request, and the answer output items and events.

`request.read` is where a request begins. What only OpenAI's own servers have is refused by name: what they keep between
requests, the tools they run themselves, files by their ids.
"""
