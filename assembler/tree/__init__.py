"""Floor 1: file trees as values, before they are layers.

Sources are unpacked by `build` and layers are packed by `pack`; both stand on floor 4 and must not know each
other, so what they share about files (entries, hostile archives, directories keyed by content) lies here.
"""
