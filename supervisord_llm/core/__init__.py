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
"""
