"""Where clients come in.

doors.py      the public listeners and the control socket; listeners.py: their sockets, which outlive them
entrance.py   as many connections as there are open files for
server.py     aiohttp's HTTP server with our manners; rfc9112.py: what its parser lets pass (pure)
tls.py        the certificate, renewed while connections go on
address.py    who is at the other end (pure)
"""
