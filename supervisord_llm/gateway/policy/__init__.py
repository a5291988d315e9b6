"""What the configuration changes in the body of a request, and what a body may not ask for. Pure.

A body is a `Fields`: its top-level keys, each with the bytes of its value. What no rule names is never
decoded and keeps its bytes.

policy.py     all rules of one model, in their order
fields.py     such a body, and the looks taken at it
guard.py      what no client may ask for
values.py     strip, default, force, min, max
system.py     the system prompt; tools.py: offered tools; usage.py: token counts; batches.py: long lists
"""
