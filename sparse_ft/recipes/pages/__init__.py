"""Recipes that are a process, a page each: what trains, or what it is, changes on the way."""

from . import lift, losia, lt_sft, rotating, spiel, spt

PAGES = (lift, losia, lt_sft, rotating, spiel, spt)
