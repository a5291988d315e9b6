"""One name, many engines: which member of a route serves a request.

route.py      a route as a value, and all that a choice may know and answer
pick.py       the choice: rules.py, obstacles.py (what keeps a member from it), then the policy
reach.py      where a route may lead, and at which numbers of tokens its choice turns
tokens.py     how many tokens a text has, by what engines have told of earlier ones
"""
