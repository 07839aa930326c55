"""Who is asking, and what that caller may do: keys, tokens, roles."""
