"""The Inference Gateway: one OpenAI-style address in front of many inference engines."""

__version__ = "0.1.0"
