"""Sites: a name for where each group of units is."""

import collections
import dataclasses

from .unit import Group


def with_sites(groups: list[Group]) -> list[Group]:
    """The groups, each with a site of its own among its kind.

    Where the parameters of a group meet in the tree of modules; where two groups would have the
    same, the module that reads the units; where it reads two groups, these are numbered.
    """
    named = [_at(group, _meeting(group) or _reader(group)) for group in groups]
    times = collections.Counter((group.kind, group.site) for group in named)
    found = []
    seen: collections.Counter = collections.Counter()
    for group, at in zip(groups, named):
        if times[at.kind, at.site] > 1:
            at = _at(group, _reader(group))
        seen[at.kind, at.site] += 1
        number = seen[at.kind, at.site]
        found.append(at if number == 1 else dataclasses.replace(at, site=f"{at.site}#{number}"))
    return found


def _at(group: Group, site: str) -> Group:
    return group if group.site else dataclasses.replace(group, site=site)


def _meeting(group: Group) -> str:
    """The last module that all of its parameters are in."""
    paths = [share.parameter.split(".")[:-1] for share in group.shares]
    common = []
    for names in zip(*paths):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common)


def _reader(group: Group) -> str:
    taken = [share.parameter for share in group.shares if share.takes]
    return taken[0].rpartition(".")[0] if taken else ""
