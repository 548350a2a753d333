"""From footage to features: which clips, which frames, what is cached."""
