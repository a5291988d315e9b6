"""Which engine a request goes to: routes, fallbacks of a schedule, and the next one where one cannot answer.

search.py       one request's way to its engine
asking.py       what a body shows of what routes ask for (pure); counting.py has engines count its tokens
standing.py     how models stand, from the fleet's snapshot (pure)
stickiness.py   who was with which member
classifying.py  what a small model says of a conversation: conversation.py (its text) and question.py are pure
"""
