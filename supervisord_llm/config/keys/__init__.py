"""Every setting there is, described once, table by table; root.py has the whole.

The parser, the JSON Schema and the reference page all follow these records, so a key cannot be read without
being documented. Attributes of the values in model.py carry the key's name plus its unit.
"""
