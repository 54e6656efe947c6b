"""Pages of the documentation."""


def blocks(page, languages):
    """The contents of the fenced blocks of a page in some languages, in their order."""
    found, language, lines = [], None, []
    for line in page.read_text(encoding="utf-8").splitlines():
        if language is None and line.startswith("```"):
            language, lines = line.removeprefix("```").strip(), []
        elif line.startswith("```"):
            found += ["\n".join(lines)] if language in languages else []
            language = None
        else:
            lines.append(line)
    return found
