"""The HTTP side: who asks, for which model, and the bytes of the answer. It decides nothing about engines.

app.py          the flat route table and the one handler behind both doors (public, control socket)
settings.py     the configuration as the look-ups a request needs, replaced as one value on reload
auth.py         headers -> caller
target.py       request line + model of the body -> model or route, and upstream path (pure)
body.py         the request's bytes, and a peek at their `model` and `stream`
exchange.py     one request and its answer, whatever becomes of them
errors.py       domain error -> status and body, one table
browser.py      what browsers are told: security headers, CORS (pure)
hops.py         headers that do not pass through a proxy (pure)
websocket.py    two websockets, joined
endpoint.py     one of our own endpoints: who may call it, and what answers
translation.py  an engine's answer in the words of another API, while it passes
connections.py  the HTTP client of a relay
clock.py        loop time as people read it
recent.py       a mapping of bounded size; expiring.py: one that forgets with time
ports.py        what this room asks of the runtime and the daemon

doors/          where clients come in
limits/         what is counted, and what is too much
choosing/       which engine a request goes to
policy/         what the configuration changes in a body, and what a body may not ask for (pure)
inference/      a request for an engine, and the bytes of its answer
api/            what we answer ourselves
sites/          other web services behind the same door
"""
