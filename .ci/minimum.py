"""Print the lowest versions that pyproject.toml allows, as constraints for pip."""

import re
import tomllib
from pathlib import Path

text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
project = tomllib.loads(text)["project"]
extras = project["optional-dependencies"].values()
for requirement in [*project["dependencies"], *(one for extra in extras for one in extra)]:
    if requirement.startswith(f"{project['name']}["):  # another extra
        continue
    bound = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement)
    if bound is None:
        raise SystemExit(f"pyproject.toml: {requirement!r} has no lower bound (name>=version)")
    print(f"{bound[1]}=={bound[2]}")
