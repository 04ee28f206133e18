"""Medians with ranges, in tables that are Markdown and can be read as they are."""

import statistics


class Table:
    """Rows of text cells under a title; `notes` stand below it."""

    def __init__(self, title, columns):
        self.title, self.columns, self.rows, self.notes = title, columns, [], []

    def row(self, *cells):
        self.rows.append([str(cell) for cell in cells])

    def note(self, text):
        self.notes.append(text)

    def markdown(self):
        lines = [self.columns, *self.rows]
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.columns))]

        def cells(line):
            return "| " + " | ".join(cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(line, widths))) + " |"

        rule = "|" + "|".join("-" * (width + 2) if at == 0 else "-" * (width + 1) + ":" for at, width in enumerate(widths)) + "|"
        text = "\n".join([cells(self.columns), rule, *map(cells, self.rows)])
        return text + "".join(f"\n\n{note}" for note in self.notes) + "\n"


def middle(samples, digits=2):
    """The median alone."""
    return number(statistics.median(samples), digits) if samples else "-"


def spread(samples, digits=2):
    """The median, and in brackets least and most."""
    if not samples:
        return "-"
    return f"{middle(samples, digits)} ({number(min(samples), digits)} to {number(max(samples), digits)})"


def ratio(ours, other):
    """Ours to the other one's: the median of what each pair says, of which each was measured right after the other, and between
    what the middle half of them lies. With a star if nine of ten pairs are on the same side of 1."""
    if not ours or not other:
        return "-"
    pairs = sorted(mine / its for mine, its in zip(ours, other, strict=True))
    quarter = len(pairs) // 4
    sure = len(pairs) > 1 and max(sum(pair < 1 for pair in pairs), sum(pair > 1 for pair in pairs)) >= 0.9 * len(pairs)
    return f"{statistics.median(pairs):.2f} ({pairs[quarter]:.2f} to {pairs[-1 - quarter]:.2f}){'*' if sure else ' '}"


def number(value, digits):
    return f"{value:,.{digits}f}"
