"""Ollama's API for clients that speak nothing else, translated from and to OpenAI's.

request.py    a body of Ollama's -> one of OpenAI's
messages.py   the conversation in it
answer.py     the engine's answer -> Ollama's lines, or its one object
events.py     bytes of an event stream -> the data of its events
models.py     tags, ps, show: what there is
endpoints.py  the rows of the route table
"""

from supervisord_llm.gateway.api.ollama.endpoints import ENDPOINTS

__all__ = ["ENDPOINTS"]
