"""What becomes of clips in which the checks find something."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import check, setting

LEAVE_OUT, KEEP = "leave out", "keep and say"
SAY, CROP = "say", "crop"


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Whether clips of no use are used, and bars cut off."""

    unfit: str = setting(
        LEAVE_OUT, "Unfit clips", "What becomes of clips that are black or frozen all through, or copies of others: "
        "left out with the reason in the report, or used and only said.", choices=(LEAVE_OUT, KEEP),
    )
    borders: str = setting(
        SAY, "Borders", "What becomes of bars around the picture: only said in the report, or cut off.",
        choices=(SAY, CROP),
    )

    def __post_init__(self):
        check(self)
