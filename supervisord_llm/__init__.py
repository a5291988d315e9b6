"""llm-supervisor: launches vLLM engines on demand behind one OpenAI-compatible API."""

__version__ = "0.1.0"
