"""The HTTP side: who asks, for which model, and the bytes of the answer. It decides nothing about engines.

doors.py      where it serves: sockets (listeners.py) and the connections that come in (entrance.py)
server.py     aiohttp's protocol with our error shape, deadlines, rfc9112.py and silence about raw requests
app.py        the flat route table and the one handler behind both doors (public, control socket)
settings.py   the configuration as the look-ups a request needs, replaced as one value on reload
auth.py       headers -> caller
limits.py     what is counted: of addresses (buckets.py), wrong keys (lockout.py), clients (meter.py)
route.py      request line + model of the body -> model or route, and upstream path (pure)
body.py       the request's bytes, and a peek at their `model` and `stream`
policy/       what the configuration changes in a body, and what a body may not ask for (pure)
inference.py  one request for an engine: body, target, policy, lease, relay; where one fails, another
choosing.py   which engine that is: core.pick, given the request (asking.py), how models stand (standing.py),
              what was chosen before (stickiness.py) and, near a limit, an exact count (counting.py)
orders.py     start, stop and the like, of models and of routes
waiting.py    what a client sees while its model starts
relay.py      the bytes between engine and client; in several parts, batching.py
elsewhere.py  what differs where an API elsewhere answers, and rates.py, what may be sent there
realtime.py   the same for websockets, which websocket.py joins
browser.py    what browsers are told: security headers, CORS (pure)
peer.py       who the client is, behind proxies that are trusted (pure)
sites.py      which request is for another web service, and what that sees of it (pure)
siterelay.py  the bytes between such a service and a client
hops.py       headers that do not pass through a proxy (pure)
tls.py        the certificate, renewed while connections go on
exchange.py   one request and its answer, whatever becomes of them
errors.py     domain error -> status and body, one table
catalog.py    the models that a caller may use, and what they can do (capabilities.py)
endpoint.py   a row of the route table: openai.py, status.py, admin.py and overview.py answer from memory
following.py  what goes on, as server-sent events
openapi.py    the description of the admin API, made from the route table
llamacpp.py   the routes of llama.cpp's router; ollama/ is Ollama's API, by translation.py
ports.py      what this room asks of the runtime and the daemon
"""
