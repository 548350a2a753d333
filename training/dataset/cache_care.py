"""What the feature cache holds and for which training sets, as text; and taking out what is not needed any more."""

from __future__ import annotations

import time

from ...loaders.feature_cache import DAY, FeatureCache, StoredSet, total
from .clip_set import files


def clean_cache(cache: FeatureCache, *, remove: bool = False, forget_after: int = 0) -> str:
    """A report of the cache, one line for each training set; with `remove`, what no set needs is deleted.

    With `forget_after` above 0, sets not prepared for that many days count as not needed; with `remove` they are struck
    from the records. Files written or used within a day always stay. Raises ValueError where a record is broken.
    """
    now = time.time()
    old = [stored for stored in cache.sets() if forget_after and stored.recorded < now - forget_after * DAY]
    if remove:
        for stored in old:
            cache.forget(stored.name)
    kept = [stored for stored in cache.sets() if stored not in old]
    unused = cache.orphans(forgetting=[stored.name for stored in old])
    lines = [_set_line(cache, stored, now, "") for stored in kept]
    lines += [_set_line(cache, stored, now, ", forgotten" if remove else ", would be forgotten") for stored in old]
    if remove:
        count, size = cache.remove_orphans()
        last = f"Removed: {files(count)}, {amount(size)}"
        if stuck := len(unused) - count:
            last += f"; {files(stuck)} could not be removed, as they are open elsewhere"
    else:
        count, size = total(unused)
        last = f"Not needed: {files(count)}, {amount(size)}" + ("; \"remove\" deletes them" if count else "")
    count, size = cache.size()
    return "\n".join([f"Feature cache: {files(count)}, {amount(size)}", f"Folder: {cache.folder}", "", *lines, last])


def _set_line(cache: FeatureCache, stored: StoredSet, now: float, more: str) -> str:
    count, size = total(map(cache.path, stored.keys))
    days = int((now - stored.recorded) / DAY)
    ago = "today" if days < 1 else "yesterday" if days == 1 else f"{days} days ago"
    missing = len(stored.keys) - count
    gone = f", {files(missing)} missing (Prepare makes them anew)" if missing else ""
    return f"{stored.name}: {files(count)}, {amount(size)}, last prepared {ago}{gone}{more}"


def amount(size: int) -> str:
    """Bytes as `3.2 GB`, `41.5 MB` or `12 kB`."""
    if size >= 10**9:
        return f"{size / 10**9:.1f} GB"
    return f"{size / 10**6:.1f} MB" if size >= 10**6 else f"{-(-size // 1000)} kB"
