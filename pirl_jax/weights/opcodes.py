"""A pickle of plain data, carried out opcode by opcode by a machine that knows few of them.

Python's own unpickler reserves the memory that a file asks for (a memo of 4 GB for nine bytes),
calls `__setstate__` of what stands on its stack, and compares keys for hours.  This one takes
opcodes from pickletools, which reads no further than the file, and builds texts, numbers, tuples,
lists and dicts; what else a file names is the business of `call` and `persistent`.  Knows no
tensor.
"""

from collections.abc import Callable
import dataclasses
import pickletools
from typing import Any

from pirl_jax.core import outside

# pi0's has 140 kB.  Of opcodes of one byte this is 200 MB, and four seconds.
MOST_BYTES = 1 << 21
MOST_KEY = 1 << 31  # larger numbers as keys could be chosen to collide


@dataclasses.dataclass(frozen=True)
class Name:
    """Something of a module that the file wants: a function, a class."""

    module: str
    name: str


class Refused(ValueError):
    """A pickle that is not carried out; the text says which, why and what to do."""


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
}
_IGNORED = {"PROTO", "FRAME"}
_OF_STACK = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Machine:
    """One pickle on its way.

    where, remedy: of the pickle, for errors.
    call: (name, arguments) -> what REDUCE makes of them.
    persistent: id -> what a persistent id stands for.
    Both raise Refused, too.
    """

    def __init__(
        self,
        where: str,
        remedy: str,
        call: Callable[[Name, tuple], Any],
        persistent: Callable[[Any], Any],
    ) -> None:
        self._where = where
        self._remedy = remedy
        self._call = call
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        """The one object of a pickle, of at most MOST_BYTES.

        Raises: Refused for an opcode that plain data need not have, and for a pickle that breaks
        off or makes no sense.
        """
        if len(content) > MOST_BYTES:
            raise self._refuse(
                f"has {len(content):,} bytes, at most {MOST_BYTES:,} describe tensors"
            )
        try:
            for opcode, argument, _ in pickletools.genops(content):
                if opcode.name == "STOP":
                    return self._pop()
                self._do(opcode.name, argument)
        except Refused:
            raise
        # genops' own, and what a stack without sense leads to.
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            reason = f"breaks off or makes no sense ({outside.shown(error)})"
            raise self._refuse(reason) from error
        raise self._refuse("breaks off")

    def _refuse(self, reason: str) -> Refused:
        return Refused(f"{self._where} {reason}; {self._remedy}")

    def last_text(self) -> str:
        """The text that lies highest on the stack: the key of what is being built."""
        for item in reversed(self._stack):
            if isinstance(item, str):
                return item
        return ""

    def _do(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            self._stack.append(argument)
        elif name in _OF_STACK:
            items = [self._pop() for _ in range(_OF_STACK[name])]
            self._stack.append(tuple(reversed(items)))
        elif name in _ACTIONS:
            getattr(self, _ACTIONS[name])(argument)
        elif name not in _IGNORED:
            raise self._refuse(f"asks for {name}, which plain tensors need not")

    def _pop(self) -> Any:
        item = self._stack.pop()
        if item is _MARK:
            raise self._refuse("makes no sense (a mark where an object is meant)")
        return item

    def _above_mark(self) -> list[Any]:
        """What was pushed since the last MARK, which goes with it."""
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        items.reverse()
        return items

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if type(top) is not kind:
            raise self._refuse(f"makes no sense (a {type(top).__name__} is no {kind.__name__})")
        return top

    def _mark(self, argument: None) -> None:
        self._stack.append(_MARK)

    def _empty_tuple(self, argument: None) -> None:
        self._stack.append(())

    def _empty_list(self, argument: None) -> None:
        self._stack.append([])

    def _empty_dict(self, argument: None) -> None:
        self._stack.append({})

    def _tuple(self, argument: None) -> None:
        self._stack.append(tuple(self._above_mark()))

    def _append(self, argument: None) -> None:
        item = self._pop()
        self._top(list).append(item)

    def _appends(self, argument: None) -> None:
        items = self._above_mark()
        self._top(list).extend(items)

    def _set_item(self, argument: None) -> None:
        value = self._pop()
        key = self._pop()
        self._put_into(self._top(dict), key, value)

    def _set_items(self, argument: None) -> None:
        items = self._above_mark()
        table = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._put_into(table, key, value)

    def _put_into(self, table: dict, key: Any, value: Any) -> None:
        """table[key] = value, where that can be meant."""
        if type(key) is not str and (type(key) is not int or abs(key) >= MOST_KEY):
            raise self._refuse(f"has a {type(key).__name__} as a name")
        if key in table:
            raise self._refuse(f"names {outside.shown(key)} twice")
        table[key] = value

    def _build(self, argument: None) -> None:
        """Attributes of an object; of a state_dict they are versions of modules."""
        self._pop()
        self._top(dict)

    def _memoize(self, argument: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _put(self, argument: int) -> None:
        self._memo[argument] = self._stack[-1]

    def _get(self, argument: int) -> None:
        self._stack.append(self._memo[argument])

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(Name(module, name))

    def _stack_global(self, argument: None) -> None:
        name = self._pop()
        module = self._pop()
        self._stack.append(Name(str(module), str(name)))

    def _reduce(self, argument: None) -> None:
        arguments = self._pop()
        name = self._pop()
        if not isinstance(name, Name) or type(arguments) is not tuple:
            raise self._refuse("makes no sense (a call of what is no function)")
        self._stack.append(self._call(name, arguments))

    def _persistent_id(self, argument: None) -> None:
        self._stack.append(self._persistent(self._pop()))


class Opaque:
    """Whatever a pickle of settings holds besides plain data; nothing of it was made or run."""


class Settings(Machine):
    """A pickle of settings, of which only the plain data is wanted."""

    def __init__(self, where: str, remedy: str) -> None:
        super().__init__(where, remedy, self._leave_out, self._leave_out)

    def _leave_out(self, *of_what: Any) -> Opaque:
        return Opaque()

    def _do(self, name: str, argument: Any) -> None:
        if name in _OF_OBJECTS:
            for _ in range(_OF_OBJECTS[name]):
                self._pop()
            self._stack.append(Opaque())
        elif name in ("EMPTY_SET", "FROZENSET"):
            if name == "FROZENSET":
                self._above_mark()
            self._stack.append(Opaque())
        elif name == "ADDITEMS":
            self._above_mark()
        else:
            super()._do(name, argument)

    def _append(self, argument: None) -> None:
        item = self._pop()
        if not self._is_opaque():
            self._top(list).append(item)

    def _appends(self, argument: None) -> None:
        items = self._above_mark()
        if not self._is_opaque():
            self._top(list).extend(items)

    def _set_item(self, argument: None) -> None:
        value = self._pop()
        key = self._pop()
        if not self._is_opaque():
            self._put_into(self._top(dict), key, value)

    def _set_items(self, argument: None) -> None:
        items = self._above_mark()
        if self._is_opaque():
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._put_into(self._top(dict), key, value)

    def _is_opaque(self) -> bool:
        """Whether what comes next belongs to an object of which nothing is kept."""
        return type(self._stack[-1]) is Opaque

    def _put_into(self, table: dict, key: Any, value: Any) -> None:
        if type(key) is str:
            super()._put_into(table, key, value)

    def _build(self, argument: None) -> None:
        self._pop()

    def _reduce(self, argument: None) -> None:
        self._pop()
        self._pop()
        self._stack.append(Opaque())


# Opcode that makes an object -> what it takes from the stack.
_OF_OBJECTS = {"NEWOBJ": 2, "NEWOBJ_EX": 3}
# Opcode -> the method that does it.
_ACTIONS = {
    "MARK": "_mark",
    "EMPTY_TUPLE": "_empty_tuple",
    "EMPTY_LIST": "_empty_list",
    "EMPTY_DICT": "_empty_dict",
    "TUPLE": "_tuple",
    "APPEND": "_append",
    "APPENDS": "_appends",
    "SETITEM": "_set_item",
    "SETITEMS": "_set_items",
    "BUILD": "_build",
    "MEMOIZE": "_memoize",
    "BINPUT": "_put",
    "LONG_BINPUT": "_put",
    "BINGET": "_get",
    "LONG_BINGET": "_get",
    "GLOBAL": "_global",
    "STACK_GLOBAL": "_stack_global",
    "REDUCE": "_reduce",
    "BINPERSID": "_persistent_id",
}
