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
    """Ours to the other one's; with a star if the ranges do not overlap."""
    if not ours or not other:
        return "-"
    apart = min(len(ours), len(other)) > 1 and (max(ours) < min(other) or max(other) < min(ours))
    return f"{statistics.median(ours) / statistics.median(other):.2f}{'*' if apart else ' '}"


def number(value, digits):
    return f"{value:,.{digits}f}"
