"""The `llm-supervisor` command: a client of the control socket, pure renderers, and `check` of the host.

    main.py      argparse and exit codes; each group of commands registers itself
    serve.py control.py observe.py schedule.py inspect.py doctor.py keys.py client_config.py fetch.py
    upgrade.py   and these: the groups; command.py adds one to the parser
    locate.py    where the daemon's control socket is
    client.py    HTTP over that socket
    owner.py     whose what root makes must be
    host.py      what `check` finds out about the host; planning.py: the fleet that a daemon would begin with;
                 classifiers.py, peers.py and rules.py: what it says of those
    examination/ the facts of the host that `doctor` gathers
    diagnosis/   what it says about them, pure
    render.py    values -> text, pure; render_plan.py: the plan; snippets.py: configurations of clients
    progress.py  a line that is redrawn; terminal.py: where it goes to

`status` and `--help` answer at a glance, so modules import what is slow (the configuration's schema, asyncio,
aiohttp) inside the functions that need it.
"""
