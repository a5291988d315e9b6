"""What the configuration changes in the body of a request, and what a body may not ask for. Pure.

A body is a `Fields`: its top-level keys, each with the bytes of its value. What no rule names is never
decoded and keeps its bytes.
"""
