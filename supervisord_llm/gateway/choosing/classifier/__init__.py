"""What a small model says of a conversation, for a route to choose by.

classifying.py   asks it and remembers what it said
conversation.py  the conversation as text (pure)
question.py      what it is asked, and which label its answer is (pure)
"""
