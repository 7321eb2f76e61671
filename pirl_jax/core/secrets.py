"""Keys and tokens stay out of everything that is written or printed.

Results are attached to issues and published; who does so does not look for a key in them.  A secret
is the value of a flag or an environment variable whose name says so, and what stands where
addresses carry one.  Knows no command and no file.
"""

from collections.abc import Iterator, Mapping, Sequence
import os
import re
from typing import Any

from pirl_jax.core import paths

HIDDEN = "***"
NAMING = {
    *("key", "keys", "apikey", "token", "secret", "secrets", "password", "passwd", "passphrase"),
    *("credential", "credentials", "authorization"),
}
# Anything shorter is no secret, and would be found in every other word.
SHORTEST = 4
# Up to here a value is hidden as a word of its own alone: "robot" may be a part of others.
SHORT = 7
USER = re.compile(r"(?<=://)[^/\s@'\"]+@")
QUERY = re.compile(r"(?<=[?&;])([\w.-]+)=([^&;#\s'\"]+)")
HEADER = re.compile(r"\b(api-key|bearer|basic)\s+[\w.~+/=-]{4,}", re.IGNORECASE)
_told: set[str] = set()


def tell(value: str | None) -> None:
    """A secret that no name gives away, as it came with a flag."""
    if value:
        _told.add(value)


def names_one(name: str) -> bool:
    """Whether an option, a variable or a field of this name holds a secret: api-key, HF_TOKEN."""
    return not NAMING.isdisjoint(re.split(r"[^a-z0-9]+", name.lower()))


def text(value: str) -> str:
    """A text without the secrets in it."""
    return _hidden(value, _pattern())


def _hidden(value: str, pattern: re.Pattern | None) -> str:
    """pattern: of the secrets that are known."""
    value = USER.sub(f"{HIDDEN}@", value)
    value = QUERY.sub(_without_value, value)
    value = HEADER.sub(lambda match: f"{match[1]} {HIDDEN}", value)
    return pattern.sub(HIDDEN, value) if pattern else value


def arguments(argv: Sequence[str]) -> list[str]:
    """A command line without the values of flags that are secret, and without others in it."""
    shown = []
    follows = False  # whether this argument is the value of a secret flag
    for argument in argv:
        name, equals, _ = argument.partition("=")
        # Fields of a recipe hold none: max_token_len is no token.
        secret = name.startswith("-") and "config." not in name and names_one(name)
        if follows:
            shown.append(HIDDEN)
        elif secret and equals:
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(text(argument))
        follows = secret and not equals and not follows
    return shown


def cleaned(value: Any) -> Any:
    """The same for what JSON holds, to any depth; other kinds of values stay as they are."""
    return _cleaned(value, _pattern())


def _cleaned(value: Any, pattern: re.Pattern | None) -> Any:
    if isinstance(value, str):
        return _hidden(value, pattern)
    if isinstance(value, Mapping):
        return dict(_entry(key, inner, pattern) for key, inner in value.items())
    if isinstance(value, list):
        return [_cleaned(inner, pattern) for inner in value]
    if isinstance(value, tuple):
        return tuple(_cleaned(inner, pattern) for inner in value)
    return value


def _entry(key: Any, value: Any, pattern: re.Pattern | None) -> tuple[Any, Any]:
    """A name and what stands under it; a text under a name that says what it is goes whole."""
    shown = _hidden(key, pattern) if isinstance(key, str) else key
    if isinstance(value, str) and value and isinstance(key, str) and names_one(key):
        return shown, HIDDEN
    return shown, _cleaned(value, pattern)


def _without_value(match: re.Match) -> str:
    name, _ = match.groups()
    return f"{name}={HIDDEN}" if names_one(name) or name.lower() in ("sig", "auth") else match[0]


def _pattern() -> re.Pattern | None:
    """All secrets that are known, the longest first: one may be the beginning of another."""
    known = sorted({*_told, *_of_environment()}, key=len, reverse=True)
    parts = [_part(value) for value in known if len(value) >= SHORTEST]
    return re.compile("|".join(parts)) if parts else None


def _part(value: str) -> str:
    quoted = re.escape(value)
    return quoted if len(value) > SHORT else rf"(?<!\w){quoted}(?!\w)"


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if names_one(name) and not _is_file_of_one(value):
            yield value.strip()


def _is_file_of_one(value: str) -> bool:
    """A file that holds a key is no key; one in base64 may begin as a path does."""
    if not value.startswith(("/", "~", "./")):
        return False
    try:
        return os.path.exists(paths.absolute(value))
    except ValueError:  # nothing can have such a path
        return False
