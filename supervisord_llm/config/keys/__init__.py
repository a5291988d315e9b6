"""Every setting there is, described once, table by table.

The parser, the JSON Schema and the reference page all follow these records, so a key cannot be read without
being documented. Attributes of the values in model.py carry the key's name plus its unit.

root.py       the whole, and its tables that are short; doors.py: [cors], [sites], server.tls
clients.py    [clients], [rate_limit]; peers.py: [peers]; routes.py: [routes]; schedule.py: [schedule]
models.py     [models], [defaults], [venvs]; derived.py: models that come of others; requests.py: `request`
commands.py   models of engine = "command"; remotes.py: of engine = "remote"
"""
