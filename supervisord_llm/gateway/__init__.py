"""The HTTP side: who asks, for which model, and the bytes of the answer. It decides nothing about engines.

server.py     aiohttp's protocol with our error shape, deadlines and silence about raw requests
app.py        the flat route table and the one handler behind both doors (public, control socket)
settings.py   the configuration as the look-ups a request needs, replaced as one value on reload
auth.py       headers -> caller
route.py      request line + model of the body -> model and upstream path (pure)
body.py       the request's bytes, and a peek at their `model` and `stream`
inference.py  one request for an engine: body, route, lease, relay
waiting.py    what a client sees while its model starts
relay.py      the bytes between engine and client
exchange.py   one request and its answer, whatever becomes of them
errors.py     domain error -> status and body, one table
openai.py status.py admin.py   the endpoints that are answered from memory
ports.py      what this room asks of the runtime and the daemon
"""
