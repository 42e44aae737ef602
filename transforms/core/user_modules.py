"""Users' modules whose names meet those of this project's packages."""

from __future__ import annotations

OWN_PACKAGES = ("pipeline", "transforms")


def name_clash(module: str) -> str:
    """Returns why a user's module is not found under its name, as the end of a message.

    Python finds a package of this project before a module of the same name in the working
    directory. The result begins with a colon; it is empty if `module` has a name of its own.
    """
    root = module.partition(".")[0]
    if root not in OWN_PACKAGES:
        return ""
    return (
        f": tracin-beam's own package {root} comes before a module of yours with this name; rename "
        "yours, or put it into a package"
    )
