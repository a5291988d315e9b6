"""The core decides: `step(fleet, event, now) -> (fleet, effects)`. Read this room first.

It is pure: no I/O, no asyncio, no clock, no logging, standard library only. `now` is monotonic seconds, given
by the caller. Import contracts and a test keep it so; in return a day can be simulated in a second.

Ten words
    model       what the configuration names
    engine      the one running server of a model, or its absence
    launch      one life of an engine; numbered, so that news of an earlier life is recognised as stale
    fleet       all engines, GPUs and waiting requests, as one frozen value
    event       something that happened, past tense
    effect      something to do, imperative; the runtime performs it and reports back with an event
    request     one call of a client: waiting, then leased, then finished
    lease       a request's permission to use an engine; an engine with a lease is busy
    grant       the memory of a GPU that an engine holds, from the decision to launch until it is reaped
    budget      the memory of a GPU that all grants together may hold

The map
    scheduler.py    `step`: one branch for each event; turn.py is the step under way
    state.py fleet.py events.py effects.py    the values; frozen.py replaces them fast
    moves.py        the moves of one engine: backoff.py, idle.py, sleep.py, ladder.py say when and how
    allocation.py   decisions over all: queue.py (who is next), placement.py (where), eviction.py (who goes)
    ledger.py room.py    who holds how much of a GPU, and how it stands; watch.py: what looking at it tells
    refusal.py      whether a request is turned away; eta.py: how long it waits
    outlook.py      why a model is as it is; explain.py, explain_memory.py and explain_schedule.py: sentences
    calendar.py     hours of the week; holdback.py: between starts of a daemon that fails
    estimate.py card.py    what is known of a model's memory, and of what it is for

    routes/         which member of a route serves a request
    sizing/         how an estimate is made
    planning/       what the fleet could do, for people
"""
