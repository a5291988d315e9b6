"""What the fleet could do, for people: nothing here is asked when something is decided. Pure.

plan.py       every model and GPU: what it takes, where it may run, what fits, and why not
spending.py   a grant as weights, KV cache and overhead, and whether it looks enough
suggest.py    what would help a model that does not fit
together.py   which models can be up at the same time
kept.py       models that are kept and so are in others' way
"""
