"""Writes a results file (CONTRIBUTING.md, Performance)."""

import json
import os


def write(folder, name, document):
    """FOLDER/NAME.json; the folder is made."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"{name}.json"), "w") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
