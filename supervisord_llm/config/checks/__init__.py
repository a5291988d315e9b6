"""What must hold between settings. Each check reports problems; none of them asks the host.

checks.py     all of them, and those that have no file of their own; and warnings
names.py      one set of names for models and routes
routes.py     within [routes] and between them; requests.py: within `request` of a model
"""
