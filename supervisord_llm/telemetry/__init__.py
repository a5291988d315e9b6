"""What the daemon tells about itself. Nothing here decides.

recorder.py   where news come in: finished requests (record.py) and steps of the runtime
metrics.py    for Prometheus; stats.py: for GET /stats; usage.py: tokens of clients, kept over restarts
logging.py    the daemon's log; accesslog.py: its line per request; journal.py: native entries
"""
