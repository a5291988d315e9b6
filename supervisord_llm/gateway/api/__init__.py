"""What we answer ourselves, from memory: lists, health, orders, and the APIs of llama.cpp and Ollama.

catalog.py   the models that a caller may use, and what they can do (capabilities.py)
openai.py    GET /v1/models
status.py    /healthz, /health, /routes, /stats, /metrics
admin.py     /admin, whose orders orders.py carries out; overview.py and route_overview.py explain
openapi.py   the description of /admin, made from the route table
following.py what goes on, as server-sent events
llamacpp.py  the routes of llama.cpp's router; ollama/ is Ollama's API
"""
