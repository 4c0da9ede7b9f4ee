"""Recipes that are a process, a page each: what trains, or what it is, changes on the way."""

from . import (
    deltas_of_parts,
    experts,
    grafting,
    green,
    lift,
    losia,
    lt_sft,
    owq,
    quest,
    rosa,
    roselora,
    rotating,
    s2ft,
    soft_masks,
    spiel,
    spt,
)

PAGES = (
    deltas_of_parts,
    experts,
    grafting,
    green,
    lift,
    losia,
    lt_sft,
    owq,
    quest,
    rosa,
    roselora,
    rotating,
    s2ft,
    soft_masks,
    spiel,
    spt,
)
