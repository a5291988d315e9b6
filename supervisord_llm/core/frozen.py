"""`replace` for frozen values of many fields: the standard library's, several times faster."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # names and types are checked as they are there
    from dataclasses import replace as replace
else:

    def replace(value, /, **changes):
        """`value` with some fields changed, as by `dataclasses.replace`; TypeError on one that it has not.

        It copies what the instance holds, where the other calls `__init__` with forty arguments. So the class
        has neither slots nor `__post_init__`, and its instances hold nothing but their fields.
        """
        kind = type(value)
        if not changes.keys() <= kind.__dataclass_fields__.keys():
            unknown = ", ".join(sorted(changes.keys() - kind.__dataclass_fields__.keys()))
            raise TypeError(f"cannot replace {unknown} of {kind.__name__}: it has no such field")
        made = object.__new__(kind)
        made.__dict__.update(value.__dict__)
        made.__dict__.update(changes)
        return made
