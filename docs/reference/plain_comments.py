#!/usr/bin/env python3
"""plain_comments.py HEADER: prints the header as Doxygen wants to read it; the INPUT_FILTER of Doxyfile.

The headers' comments are plain, as everywhere else in foveal. Here the first comment of a file becomes the file's own,
one that stands alone becomes that of what follows it, and one behind code becomes that of this code; indented lines
stay as they are laid out. The inline namespaces go, for nobody writes them. Each line stays the line that it was, so
that warnings name the right one. Comments in the bodies of functions are no documentation and stay plain.
"""

import os
import re
import sys

STANDING = re.compile(r"( *)(//|/\*)( .*|)")
TRAILING = re.compile(r"(.*\S.*?)(//|/\*)( .*)")
SPECIAL = {"//": "///", "/*": "/**"}
INDENTED = re.compile(r"( *(?:///|\*))(   *\S.*?)( \*/)?")
ITEM = re.compile(r" *(?:///|\*)  +- .*")
TYPE = re.compile(r"(?:struct|class) .* \{")
BODY = re.compile(r" *\S.*\).* \{")  # of a function
INLINE_NAMESPACE = re.compile(r"inline namespace v\d+ \{|\}  // namespace v\d+")


def with_markers(lines):
    column = None  # of the comment behind code that may go on in the next line
    body_end = None  # the line that ends the function's body
    in_type = False
    for line in lines:
        in_type = bool(TYPE.fullmatch(line)) or (in_type and line != "};")
        if body_end is not None:
            yield line
            body_end = None if line == body_end else body_end
        elif BODY.fullmatch(line):
            yield line
            body_end = "    }" if in_type else "}"
        elif INLINE_NAMESPACE.fullmatch(line):
            yield ""
        elif match := STANDING.fullmatch(line):
            space, mark, text = match.groups()
            behind = "<" if mark == "//" and len(space) == column else ""
            yield f"{space}{SPECIAL[mark]}{behind}{text}"
            column = column if behind else None
        elif match := TRAILING.fullmatch(line):
            code, mark, text = match.groups()
            yield f"{code}{SPECIAL[mark]}<{text}"
            column = len(code)
        else:
            yield line
            column = None


def with_layout(lines):
    """Doxygen fills lines; those that are indented stay as they are, but for the items of a list."""
    in_item, in_layout = False, False
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        in_item = bool(ITEM.fullmatch(line)) or (in_item and bool(INDENTED.fullmatch(line)))
        match = None if in_item else INDENTED.fullmatch(line)
        if match:
            start = "" if in_layout else " @code{.unparsed}"
            end = "" if INDENTED.fullmatch(after) and not ITEM.fullmatch(after) and not match[3] else " @endcode"
            line = f"{match[1].replace('*', ' ')}{start}{match[2]}{end}{match[3] or ''}"
            in_layout = not end
        yield line


def main():
    with open(sys.argv[1]) as header:
        lines = list(with_layout(list(with_markers(header.read().splitlines()))))
    lines[0] = re.sub(r"^(///|/\*\*)", rf"\1 @file {os.path.basename(sys.argv[1])}", lines[0])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
