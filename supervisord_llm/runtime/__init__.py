"""What happens, one after the other, and what is done about it.

loop.py       one writer: event, core.step, effects
perform.py    slow effects, each a task (tasks.py) whose result is an event
lease.py      a request's permission to use an engine
eventlog.py   the decisions, as sentences
ports.py      what this room asks of the edges
"""
