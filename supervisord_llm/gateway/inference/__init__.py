"""One request for an engine, from its first header to the last byte of its answer.

infer.py      body, route, policy, lease, relay
waiting.py    what a client sees while its model starts
relay.py      the bytes between engine and client; in several parts, batching.py
elsewhere.py  what an API on another machine may see, and what its answers mean; of peers, overture.py
realtime.py   the same for websockets
"""
