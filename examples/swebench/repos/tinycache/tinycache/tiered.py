"""A small fast cache in front of a larger slow one."""


class TieredCache:
    """Look in ``front`` first, then in ``back``; what is found there moves to the front.

    Writes go to both. Both are mappings.
    """

    def __init__(self, front, back):
        self.front = front
        self.back = back

    def get(self, key, default=None):
        try:
            return self.front[key]
        except KeyError:
            pass
        try:
            value = self.back[key]
        except KeyError:
            return default
        self.front[key] = value
        return value

    def set(self, key, value):
        self.front[key] = value
        self.back[key] = value

    def delete(self, key):
        """Remove from both tiers; True when either had it."""
        found = False
        for tier in (self.front, self.back):
            if key in tier:
                del tier[key]
                found = True
        return found

    def warm(self, pairs):
        """Write many entries and return how many."""
        count = 0
        for key, value in pairs:
            self.set(key, value)
            count += 1
        return count
