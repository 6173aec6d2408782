"""Content negotiation by the Accept header."""


def parse_accept(header):
    """``text/html;q=0.8, */*`` -> list of (type, quality), best first; ties keep the header's order."""
    entries = []
    for part in header.split(","):
        fields = [field.strip() for field in part.split(";")]
        if not fields[0]:
            continue
        quality = 1.0
        for field in fields[1:]:
            name, _, value = field.partition("=")
            if name.strip().lower() == "q":
                try:
                    quality = min(1.0, max(0.0, float(value)))
                except ValueError:
                    quality = 0.0
        entries.append((fields[0].lower(), quality))
    return sorted(entries, key=lambda entry: -entry[1])


def _specificity(accepted):
    if accepted == "*/*":
        return 0
    return 1 if accepted.endswith("/*") else 2


def _covers(accepted, offered):
    if accepted in ("*/*", offered):
        return True
    return accepted.endswith("/*") and offered.startswith(accepted[:-1])


def best_match(header, offers):
    """The offer that the client likes best, or None; ties go to the earlier offer.

    For each offer the most specific entry that covers it counts, and quality 0 excludes it.
    """
    entries = parse_accept(header or "*/*")
    best, best_quality = None, 0.0
    for offer in offers:
        covering = [entry for entry in entries if _covers(entry[0], offer.lower())]
        if not covering:
            continue
        quality = max(covering, key=lambda entry: _specificity(entry[0]))[1]
        if quality > best_quality:
            best, best_quality = offer, quality
    return best
