"""Which engine a request goes to: routes, fallbacks of a schedule, and the next one where one cannot answer.

search.py    one request's way to its engine
features.py  what a request shows of what routes look at (pure); counting.py has engines count its tokens
standing.py  how models stand, from the fleet's snapshot (pure)
classifier/  what a small model says of a conversation
"""
