"""A griffe extension: a field that is a key is documented with the words that the command line's help has for it.

The words are put together when the module is imported, so reading its source is not enough.
"""

import ast
import dataclasses
import importlib

from griffe import Attribute, Class, Docstring, Extension


class KeysAsAttributes(Extension):
    """Turns `name = key(default, metavar, text)` into a documented attribute with its default."""

    def on_class_members(self, *, node, cls: Class, **_) -> None:
        if not isinstance(node, ast.AST) or not any("key(" in str(member.value) for member in _attributes(cls)):
            return
        for field in dataclasses.fields(getattr(importlib.import_module(cls.module.path), cls.name)):
            if "key" in field.metadata:
                attribute = cls.members[field.name]
                attribute.docstring = Docstring(field.metadata["key"].text, parent=attribute)
                attribute.value = repr(field.default)


def _attributes(cls: Class) -> list[Attribute]:
    return [member for member in cls.members.values() if member.is_attribute]
