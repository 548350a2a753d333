"""What can write captions: one file each, behind one protocol."""
