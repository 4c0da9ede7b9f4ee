"""LeanReport: what `lean` changed, and what it left and why."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple


class LeanRow(NamedTuple):
    """One module. lean: whether it runs a lean forward; why: if not, what prevents it."""

    name: str
    cls: str
    lean: bool
    why: str


class LeanReport:
    """`.rows`, `.changed` and `.left` (names), `.attention` (whether padded attention is lean),
    `.offers` (classes of models whose loss `loss=True` would make lean), `.attention_left` (why the
    attention of a transformers model is not lean, or ""), `.contextual` (how `lean` was asked to
    thin gated MLPs) and `.thinned` ({gated MLP: why it stays exact, or ""}); prints as a table by
    class."""

    def __init__(
        self,
        rows: Iterable[LeanRow],
        attention: bool,
        offers: Iterable[str] = (),
        attention_left: str = "",
    ) -> None:
        self.rows, self.attention, self.offers = tuple(rows), attention, tuple(offers)
        self.attention_left = attention_left
        self.contextual: Any = None
        self.thinned: dict[str, str] = {}

    @property
    def changed(self) -> list[str]:
        return [row.name for row in self.rows if row.lean]

    @property
    def left(self) -> list[str]:
        return [row.name for row in self.rows if not row.lean]

    def __str__(self) -> str:
        groups = Counter((row.cls, row.lean, row.why) for row in self.rows)
        lines = [
            f"{count:5d} × {cls:30s} {'lean' if is_lean else 'left: ' + why}"
            for (cls, is_lean, why), count in groups.items()
        ]
        if self.attention:
            lines.append("        attention                      lean with a padded batch, too")
        return "\n".join([*lines, *self._end()])

    def _end(self) -> list[str]:
        end = [f"lean left its attention: {self.attention_left}"] if self.attention_left else []
        end += [f"{len(self.changed)} modules are lean, {len(self.left)} are left"]
        end += self._approximate()
        for kind in dict.fromkeys(self.offers):
            end.append(
                f"not asked for: the loss of {kind} without its logits, often a third of the peak"
                " of a training step; sft.lean(model, loss=True)"
            )
        return end

    def _approximate(self) -> list[str]:
        if self.contextual is None:
            return []
        reasons = Counter(self.thinned.values())
        share = f"{self.contextual.share:.0%} of their channels"
        said = [f"APPROXIMATE in training: {reasons.pop('', 0)} gated MLPs use {share} in a batch"]
        said += [f"{count} gated MLPs stay exact: {why}" for why, count in reasons.items()]
        return said

    def brief(self) -> str:
        """What is left, by class, and how many are lean.

        The table without its rows of lean modules.
        """
        groups = Counter((row.cls, row.why) for row in self.rows if not row.lean)
        left = [f"lean left {count} × {cls}: {why}" for (cls, why), count in groups.items()]
        return "\n".join([*left, *self._end()])

    __repr__ = __str__
