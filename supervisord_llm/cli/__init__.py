"""The `llm-supervisor` command: a client of the control socket, pure renderers, and `check` of the host.

    main.py      argparse and exit codes; each group of commands registers itself
    serve.py control.py observe.py inspect.py doctor.py fetch.py    the groups
    locate.py    where the daemon's control socket is
    client.py    HTTP over that socket
    host.py      what `check` finds out about the host
    examination  the facts of the host that `doctor` gathers
    diagnosis    what it says about them, pure
    render.py    values -> text, pure

`status` and `--help` answer at a glance, so modules import what is slow (the configuration's schema, asyncio,
aiohttp) inside the functions that need it.
"""
